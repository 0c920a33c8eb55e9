//! Why a policy decides: a closed set, which crosses to the host as an index.

/// The reasons of a policy. [`reasons!`](crate::reasons) makes the enum that has it.
pub trait Reasons: Copy {
    /// What they are called in Rust, in their order.
    const NAMES: &'static [&'static str];

    /// Where this one stands among them.
    fn index(self) -> u32;
}

/// The reasons of a policy that never gives one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoReasons {}

impl Reasons for NoReasons {
    const NAMES: &'static [&'static str] = &[];

    fn index(self) -> u32 {
        match self {}
    }
}

/// Makes an enum of reasons. Logs, metrics and clients see them in `snake_case`.
///
/// ```
/// interlock_policy_sdk::reasons! {
///     /// Why this policy decides.
///     pub enum Reason {
///         /// There is room.
///         Welcome,
///         /// It says too much: `prompt_too_long`.
///         PromptTooLong,
///     }
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! reasons {
    (
        $(#[$about:meta])*
        $visible:vis enum $name:ident {
            $($(#[$why:meta])* $reason:ident),+ $(,)?
        }
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $visible enum $name {
            $($(#[$why])* $reason),+
        }

        impl $crate::Reasons for $name {
            const NAMES: &'static [&'static str] = &[$(::core::stringify!($reason)),+];

            fn index(self) -> u32 {
                self as u32
            }
        }
    };
}

/// `PromptTooLong` as `prompt_too_long`.
pub(crate) fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_written_as_hosts_write_it() {
        assert_eq!(snake_case("PromptTooLong"), "prompt_too_long");
        assert_eq!(snake_case("Fine"), "fine");
    }
}
