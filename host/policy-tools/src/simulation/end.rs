//! How a request ended for its client.

/// What became of a request, as its client saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SimulatedEnd {
    /// It has its answer, to the end.
    Answered {
        /// Why the model stopped, in the API's words.
        finish: String,
    },
    /// It was turned away with this status and code.
    Refused { status: u16, code: String },
    /// It began, and then an error came.
    Broken { code: String },
    /// The client left by itself.
    Left,
    /// Neither an end nor an error came.
    Lost,
}
