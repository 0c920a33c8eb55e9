//! MLX: weights, layers, architectures, sampling. The only crate that links MLX.
//!
//! [`load`] turns a GGUF file or a model folder into a [`Model`], which is the engine's
//! [`Forward`]. A pass takes a table of rows: prompts' chunks and next tokens, one after another in
//! one array. Architecture files say what is computed; only attention knows which row a token belongs to, and
//! reads and writes keys and values in pages that the engine hands out (`cache`).
//!
//! # Invariants
//!
//! - A [`Model`], its sequences and all their arrays are made, used and dropped on one thread.
//! - A pass returns with the device idle.
//! - On the CPU a row's logits are the same to the bit whatever rows stand beside it, however its
//!   prompt was cut and wherever its pages lie.
//! - A model is read whole or refused: what its files have and nothing here uses is on a list of
//!   what changes nothing ([`Leftover`]), or the model does not load.
//! - No file, however hostile, makes this crate panic or MLX read beyond a buffer: shapes are
//!   checked before a weight is read, tokens and lengths before a pass.
//!
//! # Not here
//!
//! Text: the tokenizer's and the template's sources are handed out as plain data
//! ([`TextParts`]). Scheduling, cancelling, requests: the engine's. Downloading: the catalog's.
//!
//! # What differs by machine
//!
//! Whether MLX computes on a GPU is found out when a model is loaded, not when this is compiled:
//! one Linux binary serves both, by which libmlx.so the loader finds. On a GPU a pass is MLX's
//! graph; on a CPU it is our own code (`cpu`), the same on Linux and on a Mac without a GPU.

mod architectures;
mod cache;
mod compute_error;
mod config_keys;
mod cpu;
mod description;
mod dimensions;
mod error;
mod gpu_kernel;
mod leftover;
mod linear;
mod mixture;
mod model;
#[cfg(test)]
mod noise;
mod norm;
mod pass_failed;
mod quantization;
mod rope;
mod sample;
mod source;
mod span;
mod tensor;
mod weights;

use std::num::NonZeroUsize;
use std::path::Path;

pub use description::ModelDescription;
pub use error::{LoadError, TensorProblem, TensorProblems};
pub use leftover::{Leftover, Leftovers, OnUnknown};
pub use model::{Model, Sequence};
pub use source::Format;

use interlock_engine::{Forward, Opening, PageId, PassFailed, Row};
use interlock_model_files::TextParts;
use interlock_request::{Generation, Priority, Sampling, SamplingDefaults, TokenId};

use architectures::{ArchitectureConfig, NotOurs};
use cache::{CacheBudget, CacheSize, KvPages};
use mlx_rs::{Device, DeviceType, Dtype, memory};
use source::ModelSource;
use weights::{Precision, Survey};

/// Most tokens of a sequence when neither the model nor the options say.
const CONTEXT_OTHERWISE: u32 = 4096;

/// The settings with which a model is loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Most tokens of prompt and output, if that is to be fewer than the model's own.
    pub context_max: Option<u32>,
    /// Most bytes of keys and values, for all requests together; with fewer than one sequence of
    /// 4096 tokens takes (or of the whole context, if that is shorter) the model does not load. None:
    /// a quarter of the memory that is free when the weights are loaded, or what such a sequence
    /// takes. Either way no more than 256 full contexts, and what does not fit in it all alone is cut
    /// off the context, which [`LoadedModel::context_cut`] says.
    pub cache_max: Option<u64>,
    /// Other models of this process, with which that quarter is shared, each its equal part.
    pub neighbours: u32,
    /// Threads that compute on the CPU; all physical cores if none. The first model loaded
    /// decides for the process. On a GPU it changes nothing.
    pub threads: Option<NonZeroUsize>,
    /// What to do where the files have keys or tensors of which nothing is known.
    pub unknown: OnUnknown,
}

/// What MLX must find in the environment, unless it was put there: for `main` to set, before there
/// are threads.
///
/// MLX on CUDA keeps plans by shape (cuDNN's attention, graphs, convolutions) and counts those that
/// it made anew, ever. Beyond twice as many as it keeps, it takes the process for a bad loop and
/// fails every pass with a new shape from then on: "Cache thrashing is happening". A server meets new
/// lengths as long as it lives. What it should cost is the plan made anew.
pub const ENVIRONMENT: [(&str, &str); 1] = [("MLX_ENABLE_CACHE_THRASHING_CHECK", "0")];

/// The progress of loading a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadProgress {
    /// 0 to 1, by bytes read.
    pub fraction: f32,
    /// The present step, in words for the log.
    pub doing: &'static str,
}

/// A model, ready to compute, and what else its files hold.
pub struct LoadedModel {
    /// The weights, on the device.
    pub model: Model,
    /// The tokenizer and the chat template, for `interlock-text`.
    pub text: TextParts,
    /// The model's sizes and formats, as its files have them.
    pub description: ModelDescription,
    /// If the memory for keys and values holds less than the context: both numbers, in words.
    pub context_cut: Option<String>,
}

/// Reads what a model folder or a GGUF file says of itself, and looks whether it is all there and
/// all understood. No weight is read and MLX is not touched.
///
/// # Errors
///
/// When the files cannot be read, are damaged, are not of a supported architecture, or have what the architecture does
/// not use; and when weights are missing or misshapen.
pub fn inspect(path: &Path, unknown: OnUnknown) -> Result<ModelDescription, LoadError> {
    let source = ModelSource::open(path)?;
    CheckedSource::new(&source, unknown).map(|checked| checked.description(&source))
}

/// What a model says of itself, and what the text side needs of it.
#[derive(Debug)]
pub struct Checked {
    /// As [`inspect`] has it.
    pub description: ModelDescription,
    /// Plain data, as [`LoadedModel::text`].
    pub text: TextParts,
}

/// Looks whether the model can be loaded with these options, as far as that is known before a weight
/// is read.
///
/// # Errors
///
/// As for [`inspect`]; and when the memory given for keys and values does not hold one sequence.
pub fn check(path: &Path, options: &LoadOptions) -> Result<Checked, LoadError> {
    let source = ModelSource::open(path)?;
    let checked = CheckedSource::new(&source, options.unknown)?;
    if options.cache_max.is_some() {
        // How wide they are depends on what computes.
        checked.bounds(&source, options, precision())?;
    }
    Ok(Checked { description: checked.description(&source), text: source.text })
}

/// How the makers of the model in this folder say to sample: what its `generation_config.json`
/// has of temperature, `top_p`, `top_k`, `min_p` and repetition penalty (the same keys that vLLM
/// takes from there), and OpenAI's defaults for the rest. A `.gguf` file says nothing of it.
pub fn recommended_sampling(path: &Path) -> SamplingDefaults {
    const BYTES_MAX: u64 = 1 << 20;
    interlock_model_files::read(&path.join("generation_config.json"), BYTES_MAX)
        .map_or(SamplingDefaults::OPENAI, |json| source::sampling(&json))
}

/// Loads a model on the calling thread, which is the only one that may use it.
///
/// # Errors
///
/// As for [`inspect`]; and when the weights, or keys and values of one sequence, do not fit.
pub fn load(
    path: &Path,
    options: &LoadOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<LoadedModel, LoadError> {
    load_with(path, options, progress, precision())
}

/// The passes that requests are made of, once: prompts alone, long and short, decoding, and both in
/// one. A GPU compiles its kernels when they are first used, which took 65 s before the first token
/// on an H200. Better that the host is not ready yet than that the first client waits.
fn warm_up(model: &mut Model) -> Result<(), PassFailed> {
    /// Long enough for the kernels that products of many rows use, and for MLX's own attention.
    const LONG: [TokenId; 768] = [0; 768];
    const SHORT: usize = 64;
    fn row<'a>(
        sequence: &'a mut Sequence,
        pages: &'a [PageId],
        from: usize,
        tokens: usize,
    ) -> Row<'a, Sequence> {
        Row { sequence, tokens: &LONG[..tokens], from: from as u32, pages, draw: true }
    }
    let shape = model.shape();
    let pages: Vec<PageId> = (0..shape.pages).map(PageId).collect();
    let (some, others) = pages.split_at(pages.len() / 2);
    let holds = |pages: &[PageId]| pages.len() * shape.page_tokens as usize;
    let length = SHORT.min(shape.context as usize).min(holds(&pages));
    let hot = Sampling { temperature: 1.0, top_p: 0.9, top_k: 40, ..Sampling::greedy() };
    for sampling in [Sampling::greedy(), hot] {
        let generation = Generation {
            sampling,
            tokens_max: 1,
            tokens_min: 0,
            stop_tokens: Vec::new(),
            logprobs: None,
            priority: Priority::Standard,
        };
        let opening =
            Opening { prompt: &LONG, generated: &[], generation: &generation, fresh_seed: 0 };
        let [mut one, mut other] = [model.open(&opening)?, model.open(&opening)?];
        model.pass(&mut [row(&mut one, &pages, 0, length)])?;
        model.pass(&mut [row(&mut one, &pages, length - 1, 1)])?;
        if holds(some) < length {
            continue;
        }
        model
            .pass(&mut [row(&mut one, some, length - 1, 1), row(&mut other, others, 0, length)])?;
        if LONG.len() <= holds(others).min(shape.context as usize) {
            let long = LONG.len();
            model.pass(&mut [row(&mut other, others, 0, long)])?;
            model.pass(&mut [
                row(&mut one, some, length - 1, 1),
                row(&mut other, others, 0, long),
            ])?;
        }
    }
    Ok(())
}

/// Bytes of keys and values where the configuration does not say: a quarter of what is free, which leaves the rest to
/// whatever else is on the machine, and to this pass's own numbers.
fn cache_otherwise(precision: Precision) -> u64 {
    /// The free bytes that are assumed where the system does not say.
    const OTHERWISE: u64 = 4 << 30;
    let free = match precision {
        Precision::AsStored => memory::memory_limit().ok().map(|limit| {
            let used = memory::active_memory().unwrap_or(0);
            limit.saturating_sub(used) as u64
        }),
        Precision::F32 => memory_available(),
    };
    free.unwrap_or(OTHERWISE) / 4
}

/// Bytes of memory that Linux could give without swapping; none where there is no
/// `/proc/meminfo`.
fn memory_available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// As [`load`] does on a GPU: packed weights stay packed, the rest keeps its type. It runs anywhere,
/// and on a CPU it crawls: this is how tests without a GPU get at that path.
///
/// # Errors
///
/// As for [`load`].
#[doc(hidden)]
pub fn load_as_stored(path: &Path, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    precision();
    load_with(path, options, &mut |_| {}, Precision::AsStored)
}

fn load_with(
    path: &Path,
    options: &LoadOptions,
    progress: &mut dyn FnMut(LoadProgress),
    precision: Precision,
) -> Result<LoadedModel, LoadError> {
    progress(LoadProgress { fraction: 0.0, doing: "reading headers" });
    let source = ModelSource::open(path)?;
    let checked = CheckedSource::new(&source, options.unknown)?;
    let CheckedSource { config, survey, .. } = &checked;
    let dimensions = config.dimensions();
    let description = checked.description(&source);
    // Before the weights are read: that takes minutes, and this is known.
    let Bounds { dtype, kv_bytes, context } = checked.bounds(&source, options, precision)?;

    if precision == Precision::F32 {
        cpu::prepare(options.threads);
    }
    let mut report = |fraction| progress(LoadProgress { fraction, doing: "loading weights" });
    let load = |weights: &mut weights::WeightLoader<'_>| config.load(weights);
    let architecture = weights::build(&source, survey, precision, &mut report, load)?;

    let budget = options.cache_max.map_or_else(
        || {
            CacheBudget::FromFreeMemory(
                cache_otherwise(precision) / (u64::from(options.neighbours) + 1),
            )
        },
        CacheBudget::Configured,
    );
    let cache_size = CacheSize::new(budget, kv_bytes, context)?;
    let pages = match precision {
        Precision::F32 => Ok(KvPages::on_cpu(&dimensions, cache_size.pages)),
        _ => KvPages::in_mlx(&dimensions, cache_size.pages, dtype),
    };
    let pages = pages.map_err(|error| LoadError::Device {
        tensor: "the cache of keys and values".to_owned(),
        what: error.what().to_owned(),
    })?;
    let vocabulary = dimensions.vocabulary.unsigned_abs();
    let mut model = Model::new(architecture, vocabulary, &cache_size, pages, kv_bytes);
    if precision == Precision::AsStored {
        progress(LoadProgress { fraction: 1.0, doing: "compiling kernels" });
        warm_up(&mut model).map_err(LoadError::WarmUp)?;
    }
    progress(LoadProgress { fraction: 1.0, doing: "ready" });
    let context_cut = cache_size.cut(budget, kv_bytes, context);
    Ok(LoadedModel { model, text: source.text, description, context_cut })
}

/// A model whose files hold what its architecture uses, and nothing else that matters.
struct CheckedSource {
    config: ArchitectureConfig,
    survey: Survey,
    /// Unknown keys and tensors that the setting lets pass.
    ignored: Leftovers,
}

/// What bounds a sequence, and what each of its tokens takes.
struct Bounds {
    dtype: Dtype,
    kv_bytes: u64,
    context: u32,
}

impl CheckedSource {
    /// As these options and the files say, and what computes.
    ///
    /// # Errors
    ///
    /// When the memory that is given does not hold one sequence.
    fn bounds(
        &self,
        source: &ModelSource,
        options: &LoadOptions,
        precision: Precision,
    ) -> Result<Bounds, LoadError> {
        let dtype = weights::compute_type(source, precision);
        let kv_bytes = self.config.dimensions().kv_bytes_per_token(dtype);
        let own = self.description(source).context.unwrap_or(CONTEXT_OTHERWISE);
        let context = options.context_max.map_or(own, |most| most.min(own));
        if let Some(given) = options.cache_max {
            CacheSize::new(CacheBudget::Configured(given), kv_bytes, context)?;
        }
        Ok(Bounds { dtype, kv_bytes, context })
    }

    fn new(source: &ModelSource, unknown: OnUnknown) -> Result<Self, LoadError> {
        let path = || source.path.clone();
        let read = ArchitectureConfig::read(&source.config).map_err(|not_ours| match not_ours {
            NotOurs::Unsupported(what) => {
                LoadError::Unsupported { path: path(), what, supported: architectures::SUPPORTED }
            }
            NotOurs::Wrong(what) => LoadError::Config { path: path(), what },
        });
        let (config, of_config) = read?;
        let mut leftovers = source.leftovers.clone();
        leftovers.extend(of_config);
        // Said first: a key that is not computed may well be why tensors are missing.
        if leftovers.iter().any(|leftover| !leftover.is_unknown()) {
            return Err(LoadError::Leftovers { path: path(), leftovers: Leftovers(leftovers) });
        }
        let survey = weights::survey(source, |weights| config.load(weights))?;
        leftovers.extend(survey.leftovers.iter().cloned());
        let through = |leftover: &Leftover| unknown == OnUnknown::Warn && leftover.is_unknown();
        match leftovers.iter().all(through) {
            true => Ok(Self { config, survey, ignored: Leftovers(leftovers) }),
            false => Err(LoadError::Leftovers { path: path(), leftovers: Leftovers(leftovers) }),
        }
    }

    fn description(&self, source: &ModelSource) -> ModelDescription {
        let Self { config, ignored, .. } = self;
        ModelDescription::new(source, config.name(), &config.dimensions(), ignored)
    }
}

/// MLX's default device is a GPU if the libmlx we run with has one, so it is asked, not assumed.
/// This is also the first call, which puts mlx-rs's error handler in place.
fn precision() -> Precision {
    match Device::try_default().and_then(|device| device.get_type()) {
        Ok(DeviceType::Gpu) => Precision::AsStored,
        Ok(DeviceType::Cpu) | Err(_) => Precision::F32,
    }
}
