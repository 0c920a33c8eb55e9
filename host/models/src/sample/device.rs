//! Draws on the device: one graph for the whole batch, one evaluation, and little read back.
//!
//! A step is in the graph if some row needs it, and is then computed for all. To a row that did not
//! ask for it, it changes not a bit: its parameter is such that all tokens stay. A greedy batch
//! with nothing to adjust is an argmax and no more.
//!
//! `top_k` and `top_p` become a border: the smallest logit kept, and how many of those equal to it.
//! One sort of values finds it; nothing needs to know where in the vocabulary they stood.
//!
//! # Not here
//!
//! Randomness: each row brings its number from the host. State: nothing stays on the device.

use interlock_request::{Drawn, Logprobs, TokenId};
use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::{TryIndexOp, argmax_axis};
use mlx_rs::{Array, Dtype, ops, transforms};

use super::adjust::LogitChange;
use super::{Filter, Sampler, Strategy, printable};

/// The next token of each sampler. `logits` is `[rows, vocabulary]`, of any float type.
///
/// `besides` is what else the pass leaves behind: computed in the same evaluation, so that a pass
/// waits for the device once.
pub(crate) fn draw_on_device<'a>(
    samplers: &[&Sampler],
    logits: &Array,
    besides: impl IntoIterator<Item = &'a Array>,
) -> Result<Vec<Drawn>, Exception> {
    if samplers.is_empty() {
        return Ok(Vec::new());
    }
    let tokens = choose(samplers, &adjust(samplers, logits)?)?; // [rows]
    let logprobs = DeviceLogprobs::of(samplers, logits, &tokens)?;
    let mut together: Vec<&Array> = besides.into_iter().collect();
    together.extend(logprobs.iter().flat_map(DeviceLogprobs::arrays).chain([&tokens]));
    transforms::eval(together)?;

    let tokens = read::<u32>(&tokens)?;
    let logprobs = match logprobs {
        Some(likelihoods) => likelihoods.read(samplers)?,
        None => vec![None; samplers.len()],
    };
    let drawn = tokens.into_iter().zip(logprobs);
    Ok(drawn.map(|(token, logprobs)| Drawn { token, logprobs }).collect())
}

/// Bias, penalties and forbidden stop tokens. All changes of the batch lie in one list, so that a
/// row with many costs its neighbours nothing.
fn adjust(samplers: &[&Sampler], logits: &Array) -> Result<Array, Exception> {
    let vocabulary = logits.dim(1);
    let (mut places, mut terms): (Vec<i32>, Vec<LogitChange>) = (Vec::new(), Vec::new());
    for (row, sampler) in (0..).zip(samplers) {
        for (token, change) in sampler.adjustments.changes() {
            places.push(row * vocabulary + token.cast_signed());
            terms.push(change);
        }
    }
    let (Some(&place), Some(&change)) = (places.last(), terms.last()) else {
        return Ok(logits.clone());
    };
    // The same change of the same logit once more does no harm: both write the same number.
    let padded = padded(places.len());
    places.resize(padded, place);
    terms.resize(padded, change);

    let shape = [i32::try_from(padded).unwrap_or(i32::MAX)];
    let places = Array::from_slice(&places, &shape);
    let term = |of: fn(&LogitChange) -> f32| {
        Array::from_slice(&terms.iter().map(of).collect::<Vec<_>>(), &shape)
    };
    let flat = logits.as_dtype(Dtype::Float32)?.reshape(&[-1])?;
    let changed = flat.take_along_axis(&places, 0)?.add(term(|terms| terms.bias))?;
    let repetition = term(|terms| terms.repetition);
    let changed = ops::select(
        changed.lt(Array::from_f32(0.0))?,
        changed.multiply(&repetition)?,
        changed.divide(&repetition)?,
    )?;
    let changed = changed.subtract(term(|terms| terms.held))?;
    flat.put_along_axis(&places, changed, 0)?.reshape(logits.shape())
}

/// Few different sizes, so that MLX meets the same graph again.
fn padded(changes: usize) -> usize {
    let mut size = 16;
    while size < changes {
        size *= 4;
    }
    size
}

/// Chooses one token for each row, `[rows]`.
fn choose(samplers: &[&Sampler], logits: &Array) -> Result<Array, Exception> {
    let any_greedy = samplers.iter().any(|sampler| sampler.strategy == Strategy::Greedy);
    let any_sampled = samplers.iter().any(|sampler| sampler.strategy != Strategy::Greedy);
    let likeliest = if any_greedy { Some(argmax_axis(logits, 1, false)?) } else { None };
    let drawn = if any_sampled { Some(draw(samplers, logits)?) } else { None };
    match (likeliest, drawn) {
        (Some(likeliest), Some(drawn)) => {
            let greedy: Vec<bool> =
                samplers.iter().map(|s| s.strategy == Strategy::Greedy).collect();
            ops::select(Array::from_slice(&greedy, likeliest.shape()), &likeliest, drawn)
        }
        (Some(only), None) | (None, Some(only)) => Ok(only),
        (None, None) => Err(Exception::custom("a draw for no rows")),
    }
}

/// Samples one token for each row, `[rows]`. Results of greedy rows are not used.
fn draw(samplers: &[&Sampler], logits: &Array) -> Result<Array, Exception> {
    let [rows, vocabulary] = [logits.dim(0), logits.dim(1)];
    let filters: Vec<Filter> = samplers.iter().map(|sampler| sampler.filter()).collect();
    let of_each = |of: &dyn Fn(&Filter) -> f32| {
        Array::from_slice(&filters.iter().map(of).collect::<Vec<_>>(), &[rows, 1])
    };

    let logits = clean(logits)?;
    let largest = logits.max_axis(1, true)?; // [rows, 1]
    let inverse_temperature = of_each(&|filter| filter.inverse_temperature);
    let temper = |logits: &Array| logits.subtract(&largest)?.multiply(&inverse_temperature);
    let tempered = temper(&logits)?;
    let mut weights = tempered.exp()?;

    if filters.iter().any(|filter| filter.top_k.is_some() || filter.top_p.is_some()) {
        let kept = within_border(&filters, &logits, &temper)?;
        weights = only(&kept, &weights)?;
    }
    if filters.iter().any(|filter| filter.min_p_ln.is_some()) {
        let least = of_each(&|filter| filter.min_p_ln.unwrap_or(f32::NEG_INFINITY));
        weights = only(tempered.ge(least)?, &weights)?;
    }

    // Added up in parallel, the sums need not rise from token to token. So it is only asked of
    // tokens that may be drawn whether the sum up to them is beyond the row's number, and the
    // total is the largest of these sums: then there is always one that is.
    let sums = only(weights.gt(Array::from_f32(0.0))?, &weights.cumsum(1, false, true)?)?;
    let units: Vec<f32> = samplers.iter().map(|sampler| cut(sampler.unit())).collect();
    let target = sums.max_axis(1, true)?.multiply(Array::from_slice(&units, &[rows, 1]))?;
    let none = Array::from_int(vocabulary);
    let ids = ids(vocabulary)?; // [1, vocabulary]
    let first = ops::select(sums.gt(target)?, ids, &none)?.min_axis(1, false)?;
    // No token at all if no logit was more than minus infinity.
    let token = ops::select(first.lt(&none)?, &first, Array::from_int(0))?;
    token.as_dtype(Dtype::Uint32)
}

/// Which tokens `top_k` and `top_p` keep, `[rows, vocabulary]`.
fn within_border(
    filters: &[Filter],
    logits: &Array,
    temper: &dyn Fn(&Array) -> Result<Array, Exception>,
) -> Result<Array, Exception> {
    let [rows, vocabulary] = [logits.dim(0), logits.dim(1)];
    let top_k: Vec<i32> =
        filters.iter().map(|filter| filter.top_k.map_or(vocabulary, u32::cast_signed)).collect();
    let mut count = Array::from_slice(&top_k, &[rows, 1]);
    let sorted = ops::sort_axis(logits.negative()?, 1)?.negative()?; // likeliest first

    if filters.iter().any(|filter| filter.top_p.is_some()) {
        let within = ids(vocabulary)?.lt(&count)?;
        let weights = only(&within, &temper(&sorted)?.exp()?)?;
        // The mass before each token.
        let before = weights.cumsum(1, false, false)?;
        let total = before.try_index((.., -1..))?.add(weights.try_index((.., -1..))?)?;
        let top_p: Vec<f32> =
            filters.iter().map(|filter| filter.top_p.unwrap_or(f32::INFINITY)).collect();
        let kept = before.lt(total.multiply(Array::from_slice(&top_p, &[rows, 1]))?)?;
        let kept = kept.as_dtype(Dtype::Int32)?.sum_axis(1, true)?;
        // The likeliest stays, come what may.
        count = ops::minimum(count, ops::maximum(kept, Array::from_int(1))?)?;
    }

    let last = count.subtract(Array::from_int(1))?;
    let border = sorted.take_along_axis(last, 1)?; // [rows, 1]
    let above = logits.gt(&border)?;
    let left = count.subtract(above.as_dtype(Dtype::Int32)?.sum_axis(1, true)?)?;
    let equal = logits.eq(&border)?;
    let of_equals = equal.as_dtype(Dtype::Int32)?.cumsum(1, false, true)?;
    above.logical_or(equal.logical_and(of_equals.le(left)?)?)
}

/// What is not a number is as unlikely as can be; an infinite logit is just very likely.
fn clean(logits: &Array) -> Result<Array, Exception> {
    let least = Array::from_f32(f32::NEG_INFINITY);
    let logits = logits.as_dtype(Dtype::Float32)?;
    let numbers = ops::select(logits.ge(&least)?, &logits, &least)?;
    ops::minimum(numbers, Array::from_f32(f32::MAX))
}

fn only(kept: impl AsRef<Array>, numbers: &Array) -> Result<Array, Exception> {
    ops::select(kept, numbers, Array::from_f32(0.0))
}

fn ids(vocabulary: i32) -> Result<Array, Exception> {
    Array::arange::<i32, i32>(0, vocabulary, 1)?.reshape(&[1, -1])
}

/// Cuts `unit` to the bits that f32 has: rounding could make it 1.
fn cut(unit: f64) -> f32 {
    const STEPS: f64 = (1_u32 << f32::MANTISSA_DIGITS) as f64;
    ((unit * STEPS).floor() / STEPS) as f32
}

/// Log probabilities that are still arrays on the device.
struct DeviceLogprobs {
    /// The log probability of each drawn token, `[rows, 1]`.
    drawn: Array,
    /// The likeliest tokens and theirs, `[rows, most]`; none if nobody asked for any.
    top: Option<(Array, Array)>,
    most: usize,
}

impl DeviceLogprobs {
    fn of(
        samplers: &[&Sampler],
        logits: &Array,
        tokens: &Array,
    ) -> Result<Option<Self>, Exception> {
        let Some(most) = samplers.iter().filter_map(|sampler| sampler.logprobs).max() else {
            return Ok(None);
        };
        let logits = clean(logits)?;
        let whole = logits.logsumexp_axis(1, true)?; // [rows, 1]
        let drawn = logits.take_along_axis(tokens.reshape(&[-1, 1])?, 1)?.subtract(&whole)?;
        let top = if most > 0 {
            // MLX's sort is a merge sort on every backend, so equals stay in the order of ids.
            let order = ops::argsort_axis(logits.negative()?, 1)?;
            let ids = order.try_index((.., ..i32::try_from(most).unwrap_or(i32::MAX)))?;
            let likelihoods = logits.take_along_axis(&ids, 1)?.subtract(&whole)?;
            // What is read back must not be a window into all of it.
            Some((ids.contiguous()?, likelihoods))
        } else {
            None
        };
        Ok(Some(Self { drawn, top, most }))
    }

    fn arrays(&self) -> impl Iterator<Item = &Array> {
        let top = self.top.iter().flat_map(|(ids, likelihoods)| [ids, likelihoods]);
        top.chain([&self.drawn])
    }

    /// After an evaluation: each row's, if it asked.
    fn read(&self, samplers: &[&Sampler]) -> Result<Vec<Option<Box<Logprobs>>>, Exception> {
        let drawn = read::<f32>(&self.drawn)?;
        let (ids, likelihoods) = match &self.top {
            Some((ids, likelihoods)) => (read::<TokenId>(ids)?, read::<f32>(likelihoods)?),
            None => (Vec::new(), Vec::new()),
        };
        let of_row = |(row, sampler): (usize, &&Sampler)| {
            let count = sampler.logprobs?;
            let start = row * self.most;
            let top = ids[start..].iter().zip(&likelihoods[start..]).take(count);
            Some(Box::new(Logprobs {
                drawn: printable(drawn[row]),
                top: top.map(|(&token, &number)| (token, printable(number))).collect(),
            }))
        };
        Ok(samplers.iter().enumerate().map(of_row).collect())
    }
}

impl Sampler {
    /// A greedy row passes through the others' steps with a filter that does nothing.
    fn filter(&self) -> Filter {
        match self.strategy {
            Strategy::Sample(filter) => filter,
            Strategy::Greedy => {
                Filter { inverse_temperature: 1.0, top_k: None, top_p: None, min_p_ln: None }
            }
        }
    }
}

fn read<T: mlx_rs::ArrayElement + Clone>(array: &Array) -> Result<Vec<T>, Exception> {
    array.to_vec_exact().map_err(|error| Exception::custom(error.to_string()))
}
