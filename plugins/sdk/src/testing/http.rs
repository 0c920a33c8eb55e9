//! Other services, as a test plays them.

use super::world;
use crate::http::{Fault, Request, Response};

pub(crate) type Answers = Box<dyn Fn(&Request) -> Result<Response, Fault>>;

/// Sends a request.
///
/// # Errors
///
/// No answer; [`Fault`] says why.
pub fn send(request: &Request) -> Result<Response, Fault> {
    let answers = world(|world| world.answers.take());
    let answer = answers.as_ref().map_or(Err(Fault::NotGranted), |answer| answer(request));
    world(|world| world.answers = answers);
    answer
}
