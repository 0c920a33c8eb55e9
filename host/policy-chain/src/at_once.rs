//! For those who have no runtime: a simulation, a bench, a test.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// What a future gives that is ready at once, as every one of this crate's is when no policy is
/// slow.
///
/// # Panics
///
/// When it is not ready at once.
pub fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a future that must be ready at once is not: is a policy slow?"),
    }
}
