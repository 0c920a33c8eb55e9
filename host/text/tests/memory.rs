//! What tokenizing holds for a moment, counted by the allocator. Alone in its binary: one test,
//! so that nobody else allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use interlock_text::{RenderError, TextModel, TextParts, TokenizerSource};
use serde_json::json;

/// The system's, with a count of what is held now and of the most that was.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; what is counted is beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(HELD.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller's layout, as it came.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: what this allocator handed out came from the system's, with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What was held at most while this ran, beyond what was held before.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    let done = work();
    (done, PEAK.load(Relaxed) - before)
}

/// GPT-2 spells bytes as letters.
fn letter(byte: u8) -> char {
    match u32::from(byte) {
        0x00..=0x20 => char::from_u32(0x100 + u32::from(byte)).expect("a letter"),
        0x7F..=0xA0 => char::from_u32(0x121 + u32::from(byte) - 0x7F).expect("a letter"),
        0xAD => '\u{143}',
        _ => char::from(byte),
    }
}

/// Byte-level BPE whose longest token is 128 spaces, as in many vocabularies; digits stay alone.
fn text_model() -> TextModel {
    let mut tokens: Vec<String> = (0..=255).map(|byte| letter(byte).to_string()).collect();
    let mut merges = Vec::new();
    for (unit, doublings) in [("Ġ", 7), ("a", 4), ("-", 6)] {
        for doubling in 0..doublings {
            let half = unit.repeat(1 << doubling);
            merges.push(format!("{half} {half}"));
            tokens.push(half.repeat(2));
        }
    }
    let vocab: serde_json::Map<_, _> =
        tokens.iter().zip(0..).map(|(token, id)| (token.clone(), json!(id))).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": {"type": "NFC"},
        "added_tokens": [{"id": tokens.len(), "content": "<|end|>", "special": true,
            "normalized": false, "single_word": false, "lstrip": false, "rstrip": false}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    });
    let tokenizer = TokenizerSource::Json(json.to_string().into());
    let parts = TextParts {
        tokenizer,
        chat_template: None,
        special_tokens: Default::default(),
        eos: vec![],
    };
    TextModel::new(parts).expect("a tokenizer")
}

#[test]
fn what_tokenizing_holds_goes_by_the_limit_and_is_given_back() {
    const MIB: usize = 1 << 20;
    /// A context of 8,192.
    const TOKENS_MAX: usize = 8191;
    /// For a text that has more tokens. The crate itself takes 1.5 GB for some of these.
    const REFUSED_BYTES_MAX: usize = 16 * MIB;

    let model = text_model();
    let of = |unit: &str| unit.repeat(4 * MIB / unit.len());
    // Fills what is allocated once: expressions, the cache of words.
    model.encode("some words 1 2 3", 99).expect("a short text");
    for unit in [
        "7",
        "a",
        "\u{1F600}",
        "word ",
        "\u{301}",
        "<|end|>",
        "-",
        "\n",
        "日本",
        "e\u{301}",
        " \t",
        "a 1",
    ] {
        let text = of(unit);
        let (refused, held) = peak(|| model.encode(&text, TOKENS_MAX));
        assert!(matches!(refused, Err(RenderError::TooLong { .. })), "{unit:?}: {refused:?}");
        // Marks that follow no letter are put in order all together, before the first comes out.
        let ordered = unit == "\u{301}";
        assert!(held < REFUSED_BYTES_MAX || ordered, "{unit:?}: {held} bytes held for a refusal");
        assert!(held <= model.working_bytes(text.len(), TOKENS_MAX), "{unit:?}: {held}");
    }
    // The longest that fits, and the dearest: one word of a megabyte.
    for text in
        [" ".repeat(128 * TOKENS_MAX), "7".repeat(TOKENS_MAX), "a 7 ".repeat(TOKENS_MAX / 4)]
    {
        let (tokens, held) = peak(|| model.encode(&text, TOKENS_MAX).map(|tokens| tokens.len()));
        assert!(tokens.is_ok_and(|tokens| tokens > TOKENS_MAX / 2), "{}", text.len());
        let allowed = model.working_bytes(text.len(), TOKENS_MAX);
        assert!(held <= allowed, "{} bytes: {held} held, {allowed} said", text.len());
    }
    let before = HELD.load(Relaxed);
    for unit in ["7", "a", "word ", "a 1"] {
        model.encode(&of(unit), TOKENS_MAX).expect_err("too long");
    }
    assert!(HELD.load(Relaxed) <= before + MIB, "memory is given back");
}
