//! A loaded model: the engine's [`Forward`], over whichever family it is.

use std::marker::PhantomData;

use interlock_engine::{Forward, ModelShape, Opening, PassFailed, Row};
use interlock_request::{Drawn, TokenId};
use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype, transforms};

use crate::cache::{Batch, PAGE_TOKENS, Pages, Room, Span};
use crate::cpu;
use crate::failed::pass_failed;
use crate::families::Family;
use crate::sample::{Sampler, draw_on_device, draw_on_host};
use crate::tensor::Tensor;

/// Weights and pages on the device, and how to compute with them. Stays on the thread that loaded
/// it: MLX's default streams are per thread.
pub struct Model {
    family: Box<dyn Family>,
    shape: ModelShape,
    pages: Pages,
    kv_bytes_per_token: u64,
    stay_here: PhantomData<*mut ()>,
}

/// What a model keeps for one request, beside its pages.
pub struct Sequence {
    sampler: Sampler,
}

impl Model {
    pub(crate) fn new(
        family: Box<dyn Family>,
        vocabulary: u32,
        room: &Room,
        pages: Pages,
        kv_bytes_per_token: u64,
    ) -> Self {
        Self {
            family,
            shape: ModelShape {
                context: room.context,
                vocabulary,
                page_tokens: PAGE_TOKENS,
                pages: room.pages,
            },
            pages,
            kv_bytes_per_token,
            stay_here: PhantomData,
        }
    }

    /// Bytes of keys and values that each token of a sequence takes on this device.
    pub fn kv_bytes_per_token(&self) -> u64 {
        self.kv_bytes_per_token
    }

    /// Who multiplies matrices, for the log.
    pub fn arithmetic(&self) -> String {
        match &self.pages {
            Pages::Host(_) => {
                let (instructions, threads) = (cpu::instructions(), cpu::threads());
                let plural = if threads == 1 { "" } else { "s" };
                format!(
                    "our CPU kernels: {instructions}, {threads} thread{plural}, weights as stored"
                )
            }
            Pages::Arrays(_) => "MLX's".to_owned(),
        }
    }

    /// Who computes attention, for the log.
    pub fn attention(&self) -> String {
        match &self.pages {
            Pages::Host(_) => "our CPU kernel, over pages".to_owned(),
            Pages::Arrays(pages) => pages.attention(),
        }
    }

    /// One pass, and the logits after each token of each row, instead of tokens drawn. For
    /// comparing with another implementation; nothing that serves needs them all.
    ///
    /// # Errors
    ///
    /// As for [`Forward::pass`].
    pub fn score(
        &mut self,
        rows: &mut [Row<'_, Sequence>],
    ) -> Result<Vec<Vec<Vec<f32>>>, PassFailed> {
        self.check(rows)?;
        let numbers = self.compute(|model| {
            let hidden = model.hidden(rows)?;
            match model.family.logits(&hidden)? {
                Tensor::Host(logits) => Ok(logits.numbers),
                Tensor::Device(logits) => {
                    let logits = logits.as_dtype(Dtype::Float32)?;
                    model.settle(Some(&logits))?;
                    logits.to_vec_exact().map_err(|error| Exception::custom(error.to_string()))
                }
            }
        })?;
        let mut logits = numbers.chunks(self.shape.vocabulary as usize).map(<[f32]>::to_vec);
        Ok(rows.iter().map(|row| logits.by_ref().take(row.tokens.len()).collect()).collect())
    }

    /// MLX does not look whether a token is in the table, nor the cache whether a page is in the
    /// pool.
    fn check(&self, rows: &[Row<'_, Sequence>]) -> Result<(), PassFailed> {
        let ModelShape { context, vocabulary, page_tokens, pages } = self.shape;
        if rows.is_empty() {
            return Err(PassFailed::new("a pass over no rows"));
        }
        for (number, row) in rows.iter().enumerate() {
            let refuse = |why: String| Err(PassFailed::new(why).of_row(number));
            if row.tokens.is_empty() {
                return refuse("a pass over no tokens".to_owned());
            }
            if let Some(token) = row.tokens.iter().find(|&&token| token >= vocabulary) {
                return refuse(format!("token {token}, the vocabulary has {vocabulary}"));
            }
            let length = row.from as usize + row.tokens.len();
            if length > context as usize {
                return refuse(format!("{length} tokens, the context has {context}"));
            }
            let needed = length.div_ceil(page_tokens as usize);
            if row.pages.len() < needed {
                let has = row.pages.len();
                return refuse(format!("{length} tokens need {needed} pages, the row has {has}"));
            }
            if let Some(page) = row.pages.iter().find(|page| page.0 >= pages) {
                return refuse(format!("page {}, there are {pages}", page.0));
            }
        }
        Ok(())
    }

    /// Runs a checked pass.
    fn compute<T>(
        &mut self,
        pass: impl FnOnce(&mut Self) -> Result<T, Exception>,
    ) -> Result<T, PassFailed> {
        pass(self).map_err(|error| pass_failed(&error, &mut self.pages))
    }

    /// The table's hidden states, `[1, total, hidden]`.
    fn hidden(&mut self, rows: &[Row<'_, Sequence>]) -> Result<Tensor, Exception> {
        let mut tokens: Vec<TokenId> = Vec::new();
        let mut spans = Vec::with_capacity(rows.len());
        for row in rows {
            spans.push(Span {
                start: tokens.len(),
                count: row.tokens.len(),
                from: row.from as usize,
                pages: row.pages,
            });
            tokens.extend(row.tokens);
        }
        let mut batch = Batch::new(spans, &mut self.pages);
        self.family.hidden(&tokens, &mut batch)
    }

    /// Computes what a pass leaves behind, and `result`.
    fn settle(&self, result: Option<&Array>) -> Result<(), Exception> {
        match &self.pages {
            Pages::Host(_) => Ok(()),
            Pages::Arrays(pages) => transforms::eval(pages.arrays().chain(result)),
        }
    }

    /// The token after the last of each row that wants one, in the table's order.
    fn draw(&mut self, rows: &[Row<'_, Sequence>]) -> Result<Vec<Drawn>, Exception> {
        let hidden = self.hidden(rows)?;
        let mut ends = Vec::new();
        let mut samplers = Vec::new();
        let mut end = 0;
        for row in rows {
            end += row.tokens.len() as u32;
            if row.draw {
                ends.push(end - 1);
                samplers.push(&row.sequence.sampler);
            }
        }
        if ends.is_empty() {
            // What the last layer makes of its attention is asked for by nobody here, so it is not
            // computed: the pages are.
            self.settle(None)?;
            return Ok(Vec::new());
        }
        match self.family.logits(&hidden.rows(&ends)?)? {
            Tensor::Host(logits) => Ok(draw_on_host(&samplers, &logits.numbers)),
            Tensor::Device(logits) => {
                let logits = logits.as_dtype(Dtype::Float32)?.reshape(&[ends.len() as i32, -1])?;
                match &self.pages {
                    Pages::Host(_) => draw_on_device(&samplers, &logits, []),
                    Pages::Arrays(pages) => draw_on_device(&samplers, &logits, pages.arrays()),
                }
            }
        }
    }
}

impl Forward for Model {
    type Sequence = Sequence;

    fn shape(&self) -> ModelShape {
        self.shape
    }

    fn open(&mut self, opening: &Opening<'_>) -> Result<Sequence, PassFailed> {
        Ok(Sequence { sampler: Sampler::new(opening, self.shape.vocabulary)? })
    }

    fn pass(&mut self, rows: &mut [Row<'_, Sequence>]) -> Result<Vec<Option<Drawn>>, PassFailed> {
        self.check(rows)?;
        let mut drawn = self.compute(|model| model.draw(rows))?.into_iter();
        Ok(rows
            .iter_mut()
            .map(|row| {
                let drawn = if row.draw { drawn.next() } else { None }?;
                row.sequence.sampler.remember(drawn.token);
                Some(drawn)
            })
            .collect())
    }
}
