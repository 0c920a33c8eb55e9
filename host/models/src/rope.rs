//! Rotary position embedding and the ways to stretch it to longer contexts.
//!
//! All but the plain and the linear kind come down to one period per pair of dimensions, computed
//! here in f64 once. The formulas are mlx_lm's (models/rope_utils.py), so that a checkpoint made
//! for it means the same here.

use std::cell::OnceCell;

use mlx_rs::error::Exception;
use mlx_rs::{Array, fast};

use crate::config_keys::Keys;

/// The scaling of a rotary embedding: `rope_scaling` in `config.json`, or since Transformers 5
/// `rope_parameters`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct RopeScaling {
    kind: Option<String>,
    pub(crate) rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    attention_factor: Option<f64>,
    truncate: Option<bool>,
}

/// Kinds that [`Rope::new`] takes.
pub(crate) const SUPPORTED: &str = "rope types default, linear, llama3 and yarn";

/// The parameters of a rotary embedding, as an architecture's configuration has them.
pub(crate) struct RopeConfig<'a> {
    pub(crate) dimensions: i32,
    pub(crate) theta: f64,
    /// Pairs lie side by side, not half a head apart.
    pub(crate) traditional: bool,
    pub(crate) scaling: Option<&'a RopeScaling>,
    /// GGUF's `rope_freqs.weight`: divisors of the frequencies, with any scaling worked in.
    pub(crate) divisors: Option<&'a [f32]>,
}

pub(crate) struct Rope {
    dimensions: i32,
    traditional: bool,
    /// Positions are multiplied by this: 1, or the linear kind's `1 / factor`.
    scale: f32,
    /// Yarn's: multiplies queries and keys, to sharpen attention over longer distances. 1 is off.
    magnitude: f32,
    angles: Frequencies,
    /// Positions per radian, by pair of dimensions.
    periods: Vec<f64>,
}

enum Frequencies {
    Theta(f32),
    /// The periods, for MLX: made when first asked for, so that a rotation can be worked out where
    /// MLX is not to be touched.
    Periods(OnceCell<Array>),
}

impl Frequencies {
    fn periods() -> Self {
        Self::Periods(OnceCell::new())
    }
}

/// The cosines and sines by which the CPU rotates the queries and keys of one pass.
pub(crate) struct RopeTable {
    /// By position and pair: cosine, sine, each times the magnitude.
    table: Vec<[f32; 2]>,
    periods: Vec<f64>,
    scale: f32,
    magnitude: f32,
    traditional: bool,
}

impl RopeScaling {
    /// Reads the keys that its kind uses; others are left over.
    pub(crate) fn read(keys: &Keys<'_>) -> Result<Self, String> {
        // The older name; mlx_lm prefers it, Transformers the newer one.
        let (older, newer): (Option<String>, _) = (keys.get("type")?, keys.get("rope_type")?);
        if let (Some(older), Some(newer)) = (&older, &newer)
            && older != newer
        {
            return Err(format!("rope_type is {newer:?} and type is {older:?}, must be the same"));
        }
        let kind = newer.or(older);
        let rope_theta = keys.above_zero("rope_theta")?;
        let mut scaling = Self { kind, rope_theta, ..Self::default() };
        match scaling.kind() {
            "linear" => scaling.factor = keys.above_zero("factor")?,
            "llama3" => {
                scaling.factor = keys.above_zero("factor")?;
                scaling.low_freq_factor = keys.above_zero("low_freq_factor")?;
                scaling.high_freq_factor = keys.above_zero("high_freq_factor")?;
                scaling.original_max_position_embeddings =
                    keys.above_zero("original_max_position_embeddings")?;
            }
            "yarn" => {
                scaling.factor = keys.above_zero("factor")?;
                scaling.original_max_position_embeddings =
                    keys.above_zero("original_max_position_embeddings")?;
                scaling.beta_fast = keys.above_zero("beta_fast")?;
                scaling.beta_slow = keys.above_zero("beta_slow")?;
                scaling.mscale = keys.get("mscale")?;
                scaling.mscale_all_dim = keys.get("mscale_all_dim")?;
                scaling.attention_factor = keys.above_zero("attention_factor")?;
                scaling.truncate = keys.get("truncate")?;
                keys.ignore("finetuned");
            }
            _ => {}
        }
        Ok(scaling)
    }

    pub(crate) fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("default")
    }

    /// Whether both say the same of all but the base.
    pub(crate) fn scales_like(&self, other: &Self) -> bool {
        let rope_theta = None;
        Self { rope_theta, ..self.clone() } == Self { rope_theta, ..other.clone() }
    }

    fn factor(&self) -> Result<f64, String> {
        self.factor.ok_or_else(|| format!("rope type {:?} without a factor", self.kind()))
    }
}

impl Rope {
    /// Works out the angles; the error names a kind or a value that cannot be.
    pub(crate) fn new(rotation: &RopeConfig<'_>) -> Result<Self, String> {
        let RopeConfig { dimensions, theta, traditional, scaling, divisors } = *rotation;
        if !(theta.is_finite() && theta > 0.0) {
            return Err(format!("rope_theta is {theta}, not above zero"));
        }
        if dimensions <= 0 || dimensions % 2 != 0 {
            return Err(format!("rope turns {dimensions} dimensions, not an even number"));
        }
        let mut periods: Vec<f64> = (0..dimensions / 2)
            .map(|i| theta.powf(f64::from(2 * i) / f64::from(dimensions)))
            .collect();
        let plain = Self {
            dimensions,
            traditional,
            scale: 1.0,
            magnitude: 1.0,
            angles: Frequencies::Theta(theta as f32),
            periods: periods.clone(),
        };
        if let Some(divisors) = divisors {
            // Their makers work any scaling in; with another one beside them, one would be lost.
            if let Some(scaling) = scaling.filter(|scaling| scaling.kind() != "default") {
                let kind = scaling.kind();
                return Err(format!("rope_freqs.weight beside rope type {kind:?}"));
            }
            if let Some(bad) = divisors.iter().find(|d| !(d.is_finite() && **d > 0.0)) {
                return Err(format!("rope_freqs.weight with {bad}, not above zero,"));
            }
            for (period, divisor) in periods.iter_mut().zip(divisors) {
                *period *= f64::from(*divisor);
            }
            return Ok(Self { angles: Frequencies::periods(), periods, ..plain });
        }
        let Some(scaling) = scaling else { return Ok(plain) };
        match scaling.kind() {
            "default" => Ok(plain),
            "linear" => Ok(Self { scale: (1.0 / scaling.factor()?) as f32, ..plain }),
            "llama3" => {
                llama3(&mut periods, scaling)?;
                Ok(Self { angles: Frequencies::periods(), periods, ..plain })
            }
            "yarn" => {
                let magnitude = yarn(&mut periods, dimensions, theta, scaling)?;
                let magnitude = magnitude as f32;
                Ok(Self { angles: Frequencies::periods(), periods, magnitude, ..plain })
            }
            other => Err(format!("rope type {other:?}")),
        }
    }

    /// Rotates `x` of `[total, heads, 1, head_dim]`, each of `total` at its own of `positions`.
    pub(crate) fn forward(&self, x: &Array, positions: &Array) -> Result<Array, Exception> {
        let scaled;
        let x = if self.magnitude == 1.0 {
            x
        } else {
            scaled = x.multiply(Array::from_f32(self.magnitude).as_dtype(x.dtype())?)?;
            &scaled
        };
        let (theta, periods) = match &self.angles {
            Frequencies::Theta(theta) => (Some(*theta), None),
            Frequencies::Periods(made) => (None, Some(made.get_or_init(|| array(&self.periods)))),
        };
        fast::rope_dynamic(
            x,
            self.dimensions,
            self.traditional,
            theta,
            self.scale,
            positions,
            periods,
        )
    }
}

impl Rope {
    /// Computes the cosines and sines of each of `positions`.
    pub(crate) fn table(&self, positions: impl Iterator<Item = usize>) -> RopeTable {
        let magnitude = f64::from(self.magnitude);
        let at = |position: usize| {
            self.periods.iter().map(move |period| {
                let (sine, cosine) = (position as f64 * f64::from(self.scale) / period).sin_cos();
                [(cosine * magnitude) as f32, (sine * magnitude) as f32]
            })
        };
        RopeTable {
            table: positions.flat_map(at).collect(),
            periods: self.periods.clone(),
            scale: self.scale,
            magnitude: self.magnitude,
            traditional: self.traditional,
        }
    }

    /// Whether this rotary embedding would compute `table` for the same positions.
    pub(crate) fn makes(&self, table: &RopeTable) -> bool {
        self.periods == table.periods
            && self.scale == table.scale
            && self.magnitude == table.magnitude
            && self.traditional == table.traditional
    }
}

impl RopeTable {
    /// Rotates one head's numbers, `from` into `to`, at the `row`th of the positions.
    pub(crate) fn rotate(&self, row: usize, from: &[f32], to: &mut [f32]) {
        let pairs = self.periods.len();
        let turns = &self.table[row * pairs..(row + 1) * pairs];
        if self.traditional {
            let places = from.chunks_exact(2).zip(to.chunks_exact_mut(2));
            for ([cosine, sine], (from, to)) in turns.iter().zip(places) {
                to[0] = from[0] * cosine - from[1] * sine;
                to[1] = from[0] * sine + from[1] * cosine;
            }
        } else {
            let (low, high) = from[..2 * pairs].split_at(pairs);
            let (to_low, to_high) = to[..2 * pairs].split_at_mut(pairs);
            for pair in 0..pairs {
                let [cosine, sine] = turns[pair];
                to_low[pair] = low[pair] * cosine - high[pair] * sine;
                to_high[pair] = low[pair] * sine + high[pair] * cosine;
            }
        }
        // MLX multiplies the dimensions that are not rotated by the magnitude too.
        for (to, from) in to[2 * pairs..].iter_mut().zip(&from[2 * pairs..]) {
            *to = from * self.magnitude;
        }
    }
}

fn array(periods: &[f64]) -> Array {
    let periods: Vec<f32> = periods.iter().map(|&period| period as f32).collect();
    Array::from_slice(&periods, &[periods.len() as i32])
}

/// Llama 3.1: long waves are stretched by the factor, short ones kept, those between blended.
fn llama3(periods: &mut [f64], scaling: &RopeScaling) -> Result<(), String> {
    let factor = scaling.factor()?;
    let low = scaling.low_freq_factor.unwrap_or(1.0);
    let high = scaling.high_freq_factor.unwrap_or(4.0);
    let context = scaling.original_max_position_embeddings.unwrap_or(8192.0);
    if !(low > 0.0 && high > low && context > 0.0) {
        return Err(format!(
            "rope_scaling has low_freq_factor {low}, high_freq_factor {high} and \
             original_max_position_embeddings {context}, which must be above zero and in order"
        ));
    }
    for period in periods {
        let wavelength = 2.0 * std::f64::consts::PI * *period;
        if wavelength > context / low {
            *period *= factor;
        } else if wavelength > context / high {
            let smooth = (context / wavelength - low) / (high - low);
            *period /= (1.0 - smooth) / factor + smooth;
        }
    }
    Ok(())
}

/// Yarn (Peng et al. 2023): the blend runs over the dimension's number. Returns the magnitude.
fn yarn(
    periods: &mut [f64],
    dimensions: i32,
    theta: f64,
    scaling: &RopeScaling,
) -> Result<f64, String> {
    let factor = scaling.factor()?;
    // mlx_lm assumes 4096 and Transformers the stretched context where it is missing: no two agree.
    let Some(context) = scaling.original_max_position_embeddings else {
        return Err("rope type \"yarn\" without original_max_position_embeddings".to_owned());
    };
    if theta <= 1.0 {
        return Err(format!("yarn needs rope_theta above 1, got {theta}"));
    }
    let dimensions = f64::from(dimensions);
    let turns_at = |turns: f64| {
        dimensions * (context / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * theta.ln())
    };
    let (low, high) =
        (turns_at(scaling.beta_fast.unwrap_or(32.0)), turns_at(scaling.beta_slow.unwrap_or(1.0)));
    let whole = scaling.truncate.unwrap_or(true);
    let (low, high) = if whole { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min(dimensions - 1.0));
    // As in mlx_lm, so that equal ends are a step and not a division by zero.
    let high = if low == high { high + 0.001 } else { high };
    for (i, period) in periods.iter_mut().enumerate() {
        let keep = 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        let stretched = factor * *period;
        *period = stretched * *period / (stretched * keep + *period * (1.0 - keep));
    }
    if let Some(told) = scaling.attention_factor {
        return Ok(told);
    }
    let magnitude = |weight: f64| {
        if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
    };
    Ok(magnitude(scaling.mscale.unwrap_or(1.0)) / magnitude(scaling.mscale_all_dim.unwrap_or(0.0)))
}
