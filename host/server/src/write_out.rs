//! Writing out a long answer where that holds up nobody.

use crate::failure::Failure;
use crate::work::{Class, WorkJob, WorkPool};

/// Writes out an answer of so many bytes to this tenant: a long one where that holds up nobody.
pub(crate) async fn write_out(
    work: &WorkPool,
    tenant: &str,
    bytes: usize,
    write: impl FnOnce() -> Vec<u8> + Send + 'static,
) -> Result<Vec<u8>, Failure> {
    /// Some tens of microseconds.
    const AT_ONCE_BYTES: usize = 16 << 10;

    if bytes <= AT_ONCE_BYTES {
        return Ok(write());
    }
    // It has been generated, and is not refused now.
    let job = WorkJob { must: true, ..WorkJob::new(Class::of(bytes, 0), tenant) };
    Ok(work.run(job, write).await?)
}
