//! Whether a file holds what it should.

use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::progress::DownloadBar;

/// The SHA-256 of a file, in lower-case hexadecimal.
pub(crate) fn sha256(path: &Path, bar: &DownloadBar) -> io::Result<String> {
    let mut file = interlock_files::open(path)?;
    bar.start("checking", file.metadata()?.len());
    let mut hash = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block)? {
            0 => break,
            read => {
                hash.update(&block[..read]);
                bar.advance(read as u64);
            }
        }
    }
    bar.end();
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
