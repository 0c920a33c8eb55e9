//! A loaded model: the engine's [`Forward`], over whichever family it is.

use std::marker::PhantomData;

use interlock_engine::{Forward, ModelShape, PassFailed};
use interlock_request::{Generation, Priority, Sampling, TokenId};
use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, Device, DeviceType, Dtype, transforms};

use crate::cache::KvCache;
use crate::families::{Dimensions, Family};
use crate::sample::{Opening, Sampler, draw_on_device, draw_on_host};

/// Weights on the device, and how to compute with them. Stays on the thread that loaded it: MLX's
/// default streams are per thread.
pub struct Model {
    family: Box<dyn Family>,
    shape: ModelShape,
    layers: usize,
    kv_bytes_per_token: u64,
    stay_here: PhantomData<*mut ()>,
}

/// What a model keeps for one request.
pub struct Sequence {
    caches: Vec<KvCache>,
    sampler: Sampler,
    last: Option<TokenId>,
}

impl Sequence {
    /// Tokens whose keys and values are in the cache.
    pub fn length(&self) -> u32 {
        self.caches.first().map_or(0, |cache| cache.offset().unsigned_abs())
    }
}

impl Model {
    pub(crate) fn new(
        family: Box<dyn Family>,
        dimensions: &Dimensions,
        context: u32,
        dtype: Dtype,
    ) -> Self {
        Self {
            family,
            shape: ModelShape { context, vocabulary: dimensions.vocabulary.unsigned_abs() },
            layers: dimensions.layers.unsigned_abs() as usize,
            kv_bytes_per_token: dimensions.kv_bytes_per_token(dtype),
            stay_here: PhantomData,
        }
    }

    /// Bytes of keys and values that each token of a sequence takes on this device.
    pub fn kv_bytes_per_token(&self) -> u64 {
        self.kv_bytes_per_token
    }

    /// One pass: `chunk` enters the cache, and the logits after each of its tokens come back. For
    /// comparing with another implementation; nothing that serves needs them on the host.
    ///
    /// # Errors
    ///
    /// As for [`Forward::prefill`].
    pub fn score(
        &mut self,
        sequence: &mut Sequence,
        chunk: &[TokenId],
    ) -> Result<Vec<Vec<f32>>, PassFailed> {
        self.check(sequence, chunk)?;
        let logits = failing(|| {
            let hidden = self.hidden(sequence, chunk)?;
            let logits = self.family.logits(&hidden)?.as_dtype(Dtype::Float32)?;
            transforms::eval([&logits])?;
            Ok(logits)
        })?;
        let numbers: Vec<f32> =
            logits.to_vec_exact().map_err(|error| PassFailed(error.to_string()))?;
        Ok(numbers.chunks(self.shape.vocabulary as usize).map(<[f32]>::to_vec).collect())
    }

    /// MLX does not look whether a token is in the table, nor a family whether the context is full.
    fn check(&self, sequence: &Sequence, chunk: &[TokenId]) -> Result<(), PassFailed> {
        let ModelShape { context, vocabulary } = self.shape;
        if chunk.is_empty() {
            return Err(PassFailed("a pass over no tokens".to_owned()));
        }
        if let Some(token) = chunk.iter().find(|&&token| token >= vocabulary) {
            return Err(PassFailed(format!("token {token}, the vocabulary has {vocabulary}")));
        }
        let length = sequence.length() as usize + chunk.len();
        if length > context as usize {
            return Err(PassFailed(format!("{length} tokens, the context has {context}")));
        }
        Ok(())
    }

    fn hidden(&self, sequence: &mut Sequence, chunk: &[TokenId]) -> Result<Array, Exception> {
        let length = i32::try_from(chunk.len()).unwrap_or(i32::MAX);
        let tokens = Array::from_slice(chunk, &[1, length]);
        self.family.hidden(&tokens, &mut sequence.caches)
    }

    /// `chunk` enters the cache and a token comes out.
    fn step(&self, sequence: &mut Sequence, chunk: &[TokenId]) -> Result<TokenId, PassFailed> {
        self.check(sequence, chunk)?;
        let drawn = failing(|| {
            let hidden = self.hidden(sequence, chunk)?;
            // Only the last position's logits are wanted, so only they are computed.
            let last = hidden.try_index((.., -1.., ..))?; // [1, 1, hidden]
            let logits = self.family.logits(&last)?.reshape(&[1, -1])?; // [1, vocabulary]
            let caches = sequence.caches.iter().flat_map(KvCache::arrays);
            transforms::eval(caches.chain([&logits]))?;
            let samplers = [&sequence.sampler];
            match Device::try_default().and_then(|device| device.get_type()) {
                Ok(DeviceType::Gpu) => draw_on_device(&samplers, &logits),
                _ => {
                    let logits = logits.as_dtype(Dtype::Float32)?;
                    let logits = logits.try_as_slice::<f32>();
                    let logits = logits.map_err(|error| Exception::custom(error.to_string()))?;
                    Ok(draw_on_host(&samplers, logits))
                }
            }
        })?;
        let token = drawn.first().map(|drawn| drawn.token).unwrap_or_default();
        sequence.sampler.remember(token);
        sequence.last = Some(token);
        Ok(token)
    }
}

impl Forward for Model {
    type Sequence = Sequence;

    fn shape(&self) -> ModelShape {
        self.shape
    }

    fn open(&mut self, prompt: &[TokenId], sampling: &Sampling) -> Result<Sequence, PassFailed> {
        // FIXME: the engine is to say all of this.
        let generation = Generation {
            sampling: sampling.clone(),
            tokens_max: 1,
            tokens_min: 0,
            stop_tokens: Vec::new(),
            logprobs: None,
            priority: Priority::Standard,
        };
        let opening = Opening { prompt, generated: &[], generation: &generation };
        Ok(Sequence {
            caches: (0..self.layers).map(|_| KvCache::default()).collect(),
            sampler: Sampler::new(&opening, self.shape.vocabulary)?,
            last: None,
        })
    }

    fn prefill(&mut self, sequence: &mut Sequence, chunk: &[TokenId]) -> Result<(), PassFailed> {
        self.check(sequence, chunk)?;
        failing(|| {
            // What the last layer makes of its attention is asked for by nobody here, so it is not
            // computed: the caches are.
            self.hidden(sequence, chunk)?;
            transforms::eval(sequence.caches.iter().flat_map(KvCache::arrays))
        })
    }

    fn prefill_last(
        &mut self,
        sequence: &mut Sequence,
        chunk: &[TokenId],
    ) -> Result<TokenId, PassFailed> {
        self.step(sequence, chunk)
    }

    /// Row by row: each is computed alone, so each gets what it would get alone.
    fn decode(&mut self, batch: &mut [&mut Sequence]) -> Result<Vec<TokenId>, PassFailed> {
        batch
            .iter_mut()
            .map(|sequence| {
                let last = sequence.last.ok_or_else(|| {
                    PassFailed("decode before the prompt's last chunk".to_owned())
                })?;
                self.step(sequence, &[last])
            })
            .collect()
    }
}

fn failing<T>(pass: impl FnOnce() -> Result<T, Exception>) -> Result<T, PassFailed> {
    pass().map_err(|error| PassFailed(format!("MLX: {}", error.what())))
}
