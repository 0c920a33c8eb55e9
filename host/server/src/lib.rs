//! HTTP: the OpenAI API on one side, the engine's handle on the other.
