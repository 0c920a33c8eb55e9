//! How to draw tokens: the same fields on every endpoint.

use std::collections::BTreeMap;

use interlock_request::{Penalties, Sampling, SamplingDefaults, TokenId};

use super::fields::RequestFields;
use super::json::{FieldValue, Numbers};
use crate::failure::InvalidRequest;

/// What a request says of sampling. The rest is the model's to say, and which that is may be
/// decided later.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SamplingParams {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    seed: Option<u64>,
    logit_bias: BTreeMap<TokenId, f32>,
}

impl SamplingParams {
    /// With what this model's makers say where the request does not.
    pub(crate) fn or(&self, defaults: &SamplingDefaults) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            seed: self.seed,
            penalties: Penalties {
                repetition: self
                    .repetition_penalty
                    .unwrap_or(defaults.repetition_penalty)
                    .max(f32::MIN_POSITIVE),
                presence: self.presence_penalty.unwrap_or(0.0),
                frequency: self.frequency_penalty.unwrap_or(0.0),
            },
            logit_bias: self.logit_bias.clone(),
        }
    }

    /// The tokens that are to be likelier or less so.
    pub(crate) fn biased(&self) -> impl Iterator<Item = TokenId> {
        self.logit_bias.keys().copied()
    }
}

pub(super) fn parse(body: &RequestFields<'_>) -> Result<SamplingParams, InvalidRequest> {
    let number = |name: &str, allowed: Numbers| {
        body.get(name).map(|item| item.number(allowed).map(|n| n as f32)).transpose()
    };
    let top_k = body.get("top_k").map(|item| item.integer(-1..=i64::from(u32::MAX))).transpose()?;
    let mut params = SamplingParams {
        temperature: number("temperature", Numbers::from(0.0, 2.0))?,
        top_p: number("top_p", Numbers::from(0.0, 1.0))?,
        // -1 is what vLLM's clients send for off.
        top_k: top_k.map(|top_k| u32::try_from(top_k).unwrap_or(0)),
        min_p: number("min_p", Numbers::from(0.0, 1.0))?,
        seed: body.get("seed").map_or(Ok(None), |item| seed(&item))?,
        repetition_penalty: number("repetition_penalty", Numbers::above(0.0, 2.0))?,
        presence_penalty: number("presence_penalty", Numbers::from(-2.0, 2.0))?,
        frequency_penalty: number("frequency_penalty", Numbers::from(-2.0, 2.0))?,
        logit_bias: body
            .get("logit_bias")
            .map_or_else(|| Ok(BTreeMap::new()), |item| logit_bias(&item))?,
    };
    windows(body, &mut params)?;
    Ok(params)
}

/// Other servers have penalties that look at the last tokens alone. Ours look at all, so a window
/// beside a penalty is refused; but one of no tokens turns its penalties off, and one beside no
/// penalty means none, as it does there: also where the model's own defaults have one.
fn windows(body: &RequestFields<'_>, params: &mut SamplingParams) -> Result<(), InvalidRequest> {
    const WHOLE: i64 = -1;

    let SamplingParams { repetition_penalty, presence_penalty, frequency_penalty, .. } = params;
    let penalties = [
        (repetition_penalty, 1.0, ["repeat_last_n", "repetition_context_size"]),
        (presence_penalty, 0.0, ["repeat_last_n", "presence_context_size"]),
        (frequency_penalty, 0.0, ["repeat_last_n", "frequency_context_size"]),
    ];
    for (penalty, off, names) in penalties {
        for name in names {
            let Some(item) = body.get(name) else { continue };
            match item.integer(WHOLE..=i64::MAX)? {
                WHOLE => continue,
                1.. if penalty.is_some_and(|penalty| penalty != off) => {
                    let why = "penalties look at the prompt and the answer as a whole, which is -1";
                    return Err(InvalidRequest::unsupported(name, why, &item.shown()));
                }
                _ => *penalty = Some(off),
            }
        }
    }
    Ok(())
}

/// Any signed integer, as OpenAI has it; the same bits are the same seed. But -1 is how clients of
/// vLLM and llama.cpp ask for a random one.
fn seed(item: &FieldValue<'_>) -> Result<Option<u64>, InvalidRequest> {
    let seed = item.integer(i64::MIN..=i64::MAX)?;
    Ok((seed != -1).then_some(seed.cast_unsigned()))
}

const BIAS: Numbers = Numbers::from(-100.0, 100.0);

fn logit_bias(item: &FieldValue<'_>) -> Result<BTreeMap<TokenId, f32>, InvalidRequest> {
    if item.is_list() {
        return Ok(item.list(|pair| biased_token(&pair))?.into_iter().collect());
    }
    let bias = item.object()?;
    bias.items()
        .map(|(name, value)| {
            let id: TokenId = name.parse().map_err(|_| {
                InvalidRequest::wrong_value(
                    &bias.path_of(name),
                    "named by a token id",
                    &format!("{name:?}"),
                )
            })?;
            Ok((id, value.number(BIAS)? as f32))
        })
        .collect()
}

/// A token id and its bias, as llama.cpp's clients write them.
fn biased_token(pair: &FieldValue<'_>) -> Result<(TokenId, f32), InvalidRequest> {
    let mut both = pair.list(Ok)?.into_iter();
    let (Some(id), Some(bias), None) = (both.next(), both.next(), both.next()) else {
        return Err(pair.wrong_value("a token id and a number"));
    };
    Ok((id.token_id()?, bias.number(BIAS)? as f32))
}
