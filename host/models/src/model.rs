//! A loaded model: the engine's [`Forward`], over whichever architecture it is.

use std::marker::PhantomData;

use interlock_engine::{Forward, ModelShape, Opening, PassFailed, Row};
use interlock_request::{Drawn, TokenId};
use mlx_rs::{Array, Dtype, transforms};

use crate::architectures::Architecture;
use crate::cache::{Batch, CacheSize, KvPages};
use crate::compute_error::ComputeError;
use crate::cpu;
use crate::pass_failed::pass_failed;
use crate::sample::{Sampler, draw_on_device, draw_on_host};
use crate::span::{PAGE_TOKENS, Span};
use crate::tensor::Tensor;

/// A loaded model: the weights, and the pages of keys and values. It stays on the thread that loaded
/// it, since MLX's default streams are per thread.
pub struct Model {
    architecture: Box<dyn Architecture>,
    shape: ModelShape,
    pages: KvPages,
    kv_bytes_per_token: u64,
    stay_here: PhantomData<*mut ()>,
}

/// The state of one request in the model, beside its pages: how its tokens are drawn.
pub struct Sequence {
    sampler: Sampler,
}

impl Model {
    pub(crate) fn new(
        architecture: Box<dyn Architecture>,
        vocabulary: u32,
        cache_size: &CacheSize,
        pages: KvPages,
        kv_bytes_per_token: u64,
    ) -> Self {
        Self {
            architecture,
            shape: ModelShape {
                context: cache_size.context,
                vocabulary,
                page_tokens: PAGE_TOKENS,
                pages: cache_size.pages,
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

    /// What multiplies matrices, for the log.
    pub fn arithmetic(&self) -> String {
        match &self.pages {
            KvPages::Cpu(_) => {
                let (instructions, threads) = (cpu::instructions(), cpu::threads());
                let plural = if threads == 1 { "" } else { "s" };
                format!(
                    "our CPU kernels: {instructions}, {threads} thread{plural}, weights as stored"
                )
            }
            KvPages::Mlx(_) => "MLX's".to_owned(),
        }
    }

    /// What computes attention, for the log.
    pub fn attention(&self) -> String {
        match &self.pages {
            KvPages::Cpu(_) => "our CPU kernel, over pages".to_owned(),
            KvPages::Mlx(pages) => pages.attention(),
        }
    }

    /// Computes one pass and returns the logits, by row, by token, by vocabulary entry, instead of
    /// drawn tokens. This is for comparing with another implementation; serving never needs them.
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
            match model.architecture.logits(&hidden)? {
                Tensor::Cpu(logits) => Ok(logits.numbers),
                Tensor::Mlx(logits) => {
                    let logits = logits.as_dtype(Dtype::Float32)?;
                    model.settle(Some(&logits))?;
                    logits.to_vec_exact().map_err(|error| ComputeError::Mlx(error.to_string()))
                }
            }
        })?;
        let mut logits = numbers.chunks(self.shape.vocabulary as usize).map(<[f32]>::to_vec);
        Ok(rows.iter().map(|row| logits.by_ref().take(row.tokens.len()).collect()).collect())
    }

    /// Refuses rows that MLX or the cache would read beyond a buffer for: neither checks whether a
    /// token is in the vocabulary or a page in the
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
        pass: impl FnOnce(&mut Self) -> Result<T, ComputeError>,
    ) -> Result<T, PassFailed> {
        pass(self).map_err(|error| pass_failed(&error, &mut self.pages))
    }

    /// The table's hidden states, `[1, total, hidden]`.
    fn hidden(&mut self, rows: &[Row<'_, Sequence>]) -> Result<Tensor, ComputeError> {
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
        self.architecture.hidden(&tokens, &mut batch)
    }

    /// Evaluates what a pass leaves in MLX's pages, and `result`.
    fn settle(&self, result: Option<&Array>) -> Result<(), ComputeError> {
        match &self.pages {
            KvPages::Cpu(_) => Ok(()),
            KvPages::Mlx(pages) => Ok(transforms::eval(pages.arrays().chain(result))?),
        }
    }

    /// The token after the last of each row that wants one, in the table's order.
    fn draw(&mut self, rows: &[Row<'_, Sequence>]) -> Result<Vec<Drawn>, ComputeError> {
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
            // No row draws, so the last layer's output is not needed: only the pages are evaluated.
            self.settle(None)?;
            return Ok(Vec::new());
        }
        match self.architecture.logits(&hidden.rows(&ends)?)? {
            Tensor::Cpu(logits) => Ok(draw_on_host(&samplers, &logits.numbers)),
            Tensor::Mlx(logits) => {
                let logits = logits.as_dtype(Dtype::Float32)?.reshape(&[ends.len() as i32, -1])?;
                match &self.pages {
                    KvPages::Cpu(_) => Ok(draw_on_device(&samplers, &logits, [])?),
                    KvPages::Mlx(pages) => Ok(draw_on_device(&samplers, &logits, pages.arrays())?),
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
