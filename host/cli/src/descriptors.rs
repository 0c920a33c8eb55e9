//! File descriptors: as many as the system allows, and no more connections than fit.
//!
//! A connection takes one, and the usual limit of a shell (1,024, on macOS 256) is far below what
//! the system allows for the asking. Without one a connection cannot be accepted, so whoever takes
//! the last one silences everything else.

use std::io;
use std::num::NonZeroUsize;

use anyhow::bail;
use interlock_config::Config;
use interlock_server::descriptors;

/// Descriptors for everything that is no connection of a client's or an operator's: files of
/// models, the log, Redis and other services that policies ask, libraries' own.
const OTHERS: usize = 128;

/// Raises the limit as far as may be, and takes off `server.connections_max` what does not fit.
///
/// # Errors
///
/// When not even one connection fits.
pub(crate) fn provide(config: &mut Config) -> anyhow::Result<()> {
    let limit = match raise() {
        Ok(limit) => limit,
        Err(error) => {
            tracing::warn!(%error, "the limit of file descriptors is not known");
            return Ok(());
        }
    };
    let wanted = config.server.connections_max;
    let fitting = fitting(config, limit);
    let needed = needed(config);
    let Some(fitting) = fitting else {
        bail!(
            "{needed} file descriptors are needed for server.connections_max ({wanted}), health \
             and all else, and the system allows {limit}, which is not enough for one connection; \
             raise the limit (`ulimit -n`, LimitNOFILE=)"
        );
    };
    if fitting < wanted {
        tracing::warn!(
            needed,
            limit,
            connections_max = wanted,
            taken = fitting,
            "server.connections_max is more than the limit of file descriptors allows (`ulimit -n`, \
             LimitNOFILE=); fewer are taken"
        );
        config.server.connections_max = fitting;
    }
    Ok(())
}

/// Descriptors that this configuration may come to use.
fn needed(config: &Config) -> usize {
    descriptors(&config.server, &config.admin, &config.metrics).saturating_add(OTHERS)
}

/// As many connections as fit, and not more than are configured.
fn fitting(config: &Config, limit: usize) -> Option<NonZeroUsize> {
    let fits = |connections| {
        let mut config = config.clone();
        config.server.connections_max = connections;
        needed(&config) <= limit
    };
    // More connections never need fewer descriptors.
    let (mut most, mut none) = (0, config.server.connections_max.get().saturating_add(1));
    while none - most > 1 {
        let middle = most + (none - most) / 2;
        match NonZeroUsize::new(middle).is_some_and(fits) {
            true => most = middle,
            false => none = middle,
        }
    }
    NonZeroUsize::new(most)
}

/// Raises the soft limit to the hard one; what it is then.
fn raise() -> io::Result<usize> {
    /// What macOS takes where it says that there is no limit (`OPEN_MAX`).
    const UNLIMITED: libc::rlim_t = 10_240;

    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: it writes one `rlimit`, which is ours.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let before = limit.rlim_cur;
    for raised in [limit.rlim_max, limit.rlim_max.min(UNLIMITED)] {
        if raised <= before {
            break;
        }
        let wish = libc::rlimit { rlim_cur: raised, ..limit };
        // SAFETY: it reads one `rlimit`, which is ours.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const wish) } == 0 {
            tracing::info!(before, limit = raised, "raised the limit of file descriptors");
            limit = wish;
            break;
        }
    }
    Ok(usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(connections: usize) -> Config {
        let mut config = Config::default();
        config.server.connections_max = NonZeroUsize::new(connections).expect("not 0");
        config
    }

    #[test]
    fn connections_that_do_not_fit_are_taken_off() {
        let fit = |connections, limit| fitting(&with(connections), limit).map(NonZeroUsize::get);
        // As many again for health, the one that waits for a place, and all else.
        assert_eq!(fit(1024, 2 * 1024 + 1 + OTHERS), Some(1024));
        assert_eq!(fit(1024, 2 * 1024 + OTHERS), Some(1023));
        assert_eq!(fit(1024, 1024), Some((1024 - 1 - OTHERS) / 2));
        // The reserve is 64 at least and 1024 at most.
        assert_eq!(fit(10, 1 + 64 + 1 + OTHERS), Some(1));
        assert_eq!(fit(10, 64 + 1 + OTHERS), None);
        assert_eq!(fit(100_000, 20_000), Some(20_000 - 1024 - 1 - OTHERS));
    }

    #[test]
    fn the_connections_of_all_listeners_count() {
        let mut config = with(1024);
        let without = needed(&config);
        config.admin.bind = Some("127.0.0.1:0".parse().expect("an address"));
        let with_admin = without + config.admin.connections_max.get() + 1;
        assert_eq!(needed(&config), with_admin);
        config.metrics.bind = Some("127.0.0.1:0".parse().expect("an address"));
        assert_eq!(needed(&config), with_admin + config.metrics.connections_max.get() + 1);
    }
}
