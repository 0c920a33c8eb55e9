//! Between text and tokens: chat templates, tokenizers, detokenizing, stop strings.
