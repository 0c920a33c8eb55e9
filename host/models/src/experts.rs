//! A mixture of experts: a router chooses a few small MLPs for each token.
//!
//! On the CPU each chosen expert computes the rows that chose it, all at once, one expert after
//! another. On a GPU MLX gathers the experts' matrices by row.
//!
//! # Invariants
//!
//! - On the CPU a row's experts are added up in order of their numbers, so that a row's result does
//!   not depend on who else chose what.

use mlx_rs::error::Exception;
use mlx_rs::{Array, ops};

use crate::cpu::Host;
use crate::linear::{Linear, Matrix, gated};
use crate::tensor::Tensor;

/// `softmax(router x)`, the `chosen` likeliest experts, and their results by likelihood.
pub(crate) struct Experts {
    pub(crate) router: Linear,
    pub(crate) mlps: Mlps,
    pub(crate) chosen: usize,
    /// Whether the chosen ones' likelihoods are made to add up to one.
    pub(crate) normed: bool,
}

/// All experts' gated MLPs.
pub(crate) enum Mlps {
    Host(Vec<Mlp>),
    /// Matrices of `[experts, outputs, inputs]`.
    Device {
        gate: Matrix,
        up: Matrix,
        down: Matrix,
    },
}

/// One expert.
pub(crate) struct Mlp {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

/// Who chose an expert, and how likely it was.
type Choices = Vec<(u32, f32)>;

impl Experts {
    /// `onto` and what the experts make of `x`.
    pub(crate) fn onto(&self, onto: &Tensor, x: &Tensor) -> Result<Tensor, Exception> {
        let likely = self.router.forward(x)?; // [1, total, experts]
        match &self.mlps {
            Mlps::Host(mlps) => {
                let onto = onto.host()?;
                let mut sum = Host { width: onto.width, numbers: onto.numbers.clone() };
                for (choices, mlp) in self.choose(likely.host()?).into_iter().zip(mlps) {
                    mlp.add(&choices, x, &mut sum)?;
                }
                Ok(Tensor::Host(sum))
            }
            Mlps::Device { gate, up, down } => {
                let (which, share) = self.choose_on_device(likely.device()?)?; // [1, total, chosen]
                let rows = x.device()?.expand_dims_axes(&[-2, -3])?; // [1, total, 1, 1, hidden]
                let gate = gate.gathered(&rows, &which)?;
                let gate = gate.multiply(ops::sigmoid(&gate)?)?;
                let mixed = down.gathered(&gate.multiply(up.gathered(&rows, &which)?)?, &which)?;
                let mixed = mixed.squeeze_axes(&[-2])?; // [1, total, chosen, hidden]
                let share = share.expand_dims_axes(&[-1])?.as_dtype(mixed.dtype())?;
                let sum = mixed.multiply(share)?.sum_axis(-2, false)?;
                onto.device()?.add(sum).map(Tensor::Device)
            }
        }
    }

    /// By expert. Of two that are as likely, the first is chosen.
    fn choose(&self, likely: &Host) -> Vec<Choices> {
        let mut chosen = vec![Vec::new(); likely.width];
        let mut ranking: Vec<(f32, usize)> = Vec::new();
        for (row, logits) in likely.numbers.chunks_exact(likely.width.max(1)).enumerate() {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = logits.iter().map(|logit| (logit - largest).exp()).sum();
            ranking.clear();
            ranking.extend(logits.iter().map(|x| (x - largest).exp() / sum).zip(0..));
            ranking.sort_by(|a, b| b.0.total_cmp(&a.0));
            ranking.truncate(self.chosen);
            let whole: f32 = ranking.iter().map(|(share, _)| share).sum();
            for (share, expert) in &ranking {
                let share = if self.normed { share / whole } else { *share };
                chosen[*expert].push((row as u32, share));
            }
        }
        chosen
    }

    /// Numbers of the chosen experts, and their shares.
    fn choose_on_device(&self, likely: &Array) -> Result<(Array, Array), Exception> {
        let likely = ops::softmax_axis(likely, -1, true)?;
        let (experts, chosen) = (likely.dim(-1), self.chosen as i32);
        let order = ops::argpartition_axis(&likely, experts - chosen, -1)?;
        let last: Vec<i32> = (experts - chosen..experts).collect();
        let which = order.take_axis(Array::from_slice(&last, &[chosen]), -1)?;
        let shares = likely.take_along_axis(&which, -1)?;
        if self.normed {
            let whole = shares.sum_axis(-1, true)?;
            return Ok((which, shares.divide(whole)?));
        }
        Ok((which, shares))
    }
}

impl Mlp {
    /// Adds what this expert makes of the rows that chose it to theirs.
    fn add(&self, choices: &Choices, x: &Tensor, sum: &mut Host) -> Result<(), Exception> {
        if choices.is_empty() {
            return Ok(());
        }
        let rows: Vec<u32> = choices.iter().map(|(row, _)| *row).collect();
        let results = self.down.forward(&gated(&x.rows(&rows)?, &self.gate, &self.up)?)?;
        let Host { width, numbers } = results.host()?;
        for ((row, share), result) in choices.iter().zip(numbers.chunks_exact(*width)) {
            let sums = &mut sum.numbers[*row as usize * width..][..*width];
            sums.iter_mut().zip(result).for_each(|(sum, x)| *sum += share * x);
        }
        Ok(())
    }
}
