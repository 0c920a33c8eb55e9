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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Host;

    #[test]
    fn a_test_answers_for_other_services() {
        let host = Host::new();
        let request = Request {
            method: "GET".into(),
            url: "http://auth.internal/".into(),
            headers: vec![],
            body: vec![],
            timeout: 1_000_000,
        };
        assert_eq!(send(&request), Err(Fault::NotGranted));
        host.answers(|request| {
            let body = request.url.clone().into_bytes();
            Ok(Response { status: 200, headers: vec![], body })
        });
        let response = send(&request).expect("the test answers");
        assert_eq!(response.body, request.url.as_bytes());
    }
}
