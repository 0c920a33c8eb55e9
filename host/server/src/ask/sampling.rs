//! How to draw tokens: the same fields on every endpoint.

use std::collections::BTreeMap;

use interlock_request::{Penalties, Sampling, SamplingDefaults, TokenId};

use super::Invalid;
use super::json::{Item, Numbers, Object};

pub(super) fn parse(body: &Object<'_>, defaults: &SamplingDefaults) -> Result<Sampling, Invalid> {
    let number = |name: &str, allowed: Numbers, otherwise: f32| {
        let item = body.get(name);
        item.map_or(Ok(otherwise), |item| item.number(allowed).map(|n| n as f32))
    };
    let top_k = body
        .get("top_k")
        .map_or(Ok(i64::from(defaults.top_k)), |item| item.integer(-1..=i64::from(u32::MAX)))?;
    Ok(Sampling {
        temperature: number("temperature", Numbers::from(0.0, 2.0), defaults.temperature)?,
        top_p: number("top_p", Numbers::from(0.0, 1.0), defaults.top_p)?,
        // -1 is what vLLM's clients send for off.
        top_k: u32::try_from(top_k).unwrap_or(0),
        min_p: number("min_p", Numbers::from(0.0, 1.0), defaults.min_p)?,
        seed: body.get("seed").map(|item| seed(&item)).transpose()?,
        penalties: Penalties {
            repetition: number(
                "repetition_penalty",
                Numbers::above(0.0, 2.0),
                defaults.repetition_penalty,
            )?
            .max(f32::MIN_POSITIVE),
            presence: number("presence_penalty", Numbers::from(-2.0, 2.0), 0.0)?,
            frequency: number("frequency_penalty", Numbers::from(-2.0, 2.0), 0.0)?,
        },
        logit_bias: body
            .get("logit_bias")
            .map_or_else(|| Ok(BTreeMap::new()), |item| logit_bias(&item))?,
    })
}

/// Any signed integer, as OpenAI has it; the same bits are the same seed.
fn seed(item: &Item<'_>) -> Result<u64, Invalid> {
    item.integer(i64::MIN..=i64::MAX).map(i64::cast_unsigned)
}

fn logit_bias(item: &Item<'_>) -> Result<BTreeMap<TokenId, f32>, Invalid> {
    let bias = item.object()?;
    bias.items()
        .map(|(name, value)| {
            let id: TokenId = name.parse().map_err(|_| {
                Invalid::wrong_value(
                    &bias.path_of(name),
                    "named by a token id",
                    &format!("{name:?}"),
                )
            })?;
            Ok((id, value.number(Numbers::from(-100.0, 100.0))? as f32))
        })
        .collect()
}
