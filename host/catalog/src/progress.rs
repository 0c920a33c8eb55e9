//! The progress bar of a pull.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Whether a pull shows a bar. The bar goes to stderr, and only when that is a terminal; the log
/// has a line per file either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullProgress {
    /// A bar per file.
    Shown,
    /// No bar.
    Silent,
}

impl PullProgress {
    pub(crate) fn bar(self) -> DownloadBar {
        let target = match self {
            Self::Shown => ProgressDrawTarget::stderr(),
            Self::Silent => ProgressDrawTarget::hidden(),
        };
        DownloadBar(ProgressBar::with_draw_target(None, target))
    }
}

/// The bar of one file.
pub(crate) struct DownloadBar(ProgressBar);

impl DownloadBar {
    const STYLE: &str =
        "{msg:30!} {wide_bar:.dim} {bytes:>11}/{total_bytes:11} {bytes_per_sec:>12} {eta:>4}";

    pub(crate) fn start(&self, name: &str, bytes: u64) {
        // The hub's client announces a file twice, the second time after a resume's offset is known.
        self.0.reset();
        self.0.set_style(
            ProgressStyle::with_template(Self::STYLE)
                .expect("the template above is well formed")
                .progress_chars("━╸ "),
        );
        self.0.set_length(bytes);
        self.0.set_message(name.to_owned());
    }

    pub(crate) fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    pub(crate) fn end(&self) {
        self.0.finish();
    }
}

impl hf_hub::api::Progress for DownloadBar {
    fn init(&mut self, size: usize, filename: &str) {
        self.start(filename, size as u64);
    }

    fn update(&mut self, size: usize) {
        self.advance(size as u64);
    }

    fn finish(&mut self) {
        self.end();
    }
}
