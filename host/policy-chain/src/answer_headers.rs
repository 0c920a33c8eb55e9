//! The headers that policies may put on an answer.

/// Most headers that policies together put on one answer.
const HEADERS_MAX: usize = 16;
/// Longest name or value.
const BYTES_MAX: usize = 256;

/// Adds what may be added: `x-...` and `ratelimit...`, the first of each name, within the bounds.
/// What may not is dropped: it is the policy's mistake, not the client's.
pub(crate) fn add(to: &mut Vec<(String, String)>, headers: &[(String, String)]) {
    for (name, value) in headers {
        let name = name.to_ascii_lowercase();
        let known = to.iter().any(|(other, _)| *other == name);
        if !known && to.len() < HEADERS_MAX && allowed(&name) && printable(value) {
            to.push((name, value.clone()));
        }
    }
}

fn allowed(name: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    name.len() <= BYTES_MAX
        && (name.starts_with("x-") || name.starts_with("ratelimit"))
        // This is how the host names requests; a client that reads it must be able to trust it.
        && name != "x-request-id"
        && name.bytes().all(token)
}

fn printable(value: &str) -> bool {
    value.len() <= BYTES_MAX && value.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.into(), value.into())
    }

    #[test]
    fn only_harmless_headers_pass_and_the_first_of_a_name_counts() {
        let mut headers = vec![];
        add(&mut headers, &[pair("X-A", "1"), pair("set-cookie", "a=b"), pair("x-b", "a\r\nb: c")]);
        add(
            &mut headers,
            &[pair("x-a", "2"), pair("ratelimit-reset", "3"), pair("x-request-id", "")],
        );
        assert_eq!(headers, [pair("x-a", "1"), pair("ratelimit-reset", "3")]);
        let many: Vec<_> = (0..40).map(|n| pair(&format!("x-{n}"), "v")).collect();
        add(&mut headers, &many);
        assert_eq!(headers.len(), HEADERS_MAX);
    }
}
