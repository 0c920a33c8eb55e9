//! The progress bar of a run.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Whether a run shows a bar. The bar goes to stderr, and only when that is a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressDisplay {
    /// A bar with the current measurement, the number of requests done, and the time left.
    Shown,
    /// No bar.
    Silent,
}

/// The bar of a run. It counts requests: batches are of very different sizes.
pub(crate) struct RunBar(ProgressBar);

impl RunBar {
    const STYLE: &str = "{msg:44!} {wide_bar:.dim} {pos}/{len} requests, {eta} left";

    pub(crate) fn start(progress: ProgressDisplay, requests: u64) -> Self {
        let target = match progress {
            ProgressDisplay::Shown => ProgressDrawTarget::stderr(),
            ProgressDisplay::Silent => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(requests), target);
        bar.set_style(
            ProgressStyle::with_template(Self::STYLE)
                .expect("the template above is well formed")
                .progress_chars("━╸ "),
        );
        // A long answer ends nothing for a while; the time left should go on.
        if progress == ProgressDisplay::Shown && !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self(bar)
    }

    pub(crate) fn measures(&self, what: String) {
        self.0.set_message(what);
    }

    pub(crate) fn advance(&self) {
        self.0.inc(1);
    }
}

impl Drop for RunBar {
    /// The report takes its place.
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
