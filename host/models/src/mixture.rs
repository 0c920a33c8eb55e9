//! A mixture of experts: a router chooses a few small MLPs for each token.
//!
//! On the CPU each chosen expert computes the rows that chose it, all at once, one expert after
//! another. On a GPU MLX gathers the experts' matrices by row.
//!
//! # Invariants
//!
//! - On the CPU a row's experts are added up in order of their numbers, so that a row's result does
//!   not depend on who else chose what.

use mlx_rs::{Array, ops};

use crate::compute_error::ComputeError;
use crate::cpu::CpuTensor;
use crate::linear::{Linear, Matrix, swiglu};
use crate::tensor::Tensor;

/// A sparse MLP: `softmax(router x)` weighs the experts, and of these the likeliest few compute.
/// Formula and names as in mlx_lm (`Qwen3MoeSparseMoeBlock`).
pub(crate) struct MoeBlock {
    pub(crate) router: Linear,
    pub(crate) mlps: ExpertMlps,
    /// `num_experts_per_tok`: experts that compute each token.
    pub(crate) experts_per_token: usize,
    /// `norm_topk_prob`: whether the weights of the chosen experts are scaled to add up to one.
    pub(crate) normalize: bool,
}

/// The SwiGLU MLPs of all experts.
pub(crate) enum ExpertMlps {
    Cpu(Vec<Expert>),
    /// Matrices of `[experts, outputs, inputs]`.
    Mlx {
        gate: Matrix,
        up: Matrix,
        down: Matrix,
    },
}

/// The SwiGLU MLP of one expert.
pub(crate) struct Expert {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

/// The rows that chose an expert, and with what weight.
type Choices = Vec<(u32, f32)>;

impl MoeBlock {
    /// `residual` plus the weighted sum of what the chosen experts compute of `x`.
    pub(crate) fn with_residual(
        &self,
        residual: &Tensor,
        x: &Tensor,
    ) -> Result<Tensor, ComputeError> {
        let likely = self.router.forward(x)?; // [1, total, experts]
        match &self.mlps {
            ExpertMlps::Cpu(mlps) => {
                let residual = residual.cpu()?;
                let mut sum =
                    CpuTensor { width: residual.width, numbers: residual.numbers.clone() };
                for (choices, mlp) in self.choose(likely.cpu()?).into_iter().zip(mlps) {
                    mlp.add(&choices, x, &mut sum)?;
                }
                Ok(Tensor::Cpu(sum))
            }
            ExpertMlps::Mlx { gate, up, down } => {
                let (which, share) = self.choose_on_device(likely.mlx()?)?; // [1, total, chosen]
                let rows = x.mlx()?.expand_dims_axes(&[-2, -3])?; // [1, total, 1, 1, hidden]
                let gate = gate.gathered(&rows, &which)?;
                let gate = gate.multiply(ops::sigmoid(&gate)?)?;
                let mixed = down.gathered(&gate.multiply(up.gathered(&rows, &which)?)?, &which)?;
                let mixed = mixed.squeeze_axes(&[-2])?; // [1, total, chosen, hidden]
                let share = share.expand_dims_axes(&[-1])?.as_dtype(mixed.dtype())?;
                let sum = mixed.multiply(share)?.sum_axis(-2, false)?;
                Ok(Tensor::Mlx(residual.mlx()?.add(sum)?))
            }
        }
    }

    /// The choices of all rows, by expert. Of two experts that are as likely, the first is chosen.
    fn choose(&self, likely: &CpuTensor) -> Vec<Choices> {
        let mut chosen = vec![Vec::new(); likely.width];
        let mut ranking: Vec<(f32, usize)> = Vec::new();
        for (row, logits) in likely.numbers.chunks_exact(likely.width.max(1)).enumerate() {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = logits.iter().map(|logit| (logit - largest).exp()).sum();
            ranking.clear();
            ranking.extend(logits.iter().map(|x| (x - largest).exp() / sum).zip(0..));
            ranking.sort_by(|a, b| b.0.total_cmp(&a.0));
            ranking.truncate(self.experts_per_token);
            let whole: f32 = ranking.iter().map(|(share, _)| share).sum();
            for (share, expert) in &ranking {
                let share = if self.normalize { share / whole } else { *share };
                chosen[*expert].push((row as u32, share));
            }
        }
        chosen
    }

    /// The numbers of the chosen experts and their weights, each `[1, total, experts_per_token]`.
    fn choose_on_device(&self, likely: &Array) -> Result<(Array, Array), ComputeError> {
        let likely = ops::softmax_axis(likely, -1, true)?;
        let (experts, chosen) = (likely.dim(-1), self.experts_per_token as i32);
        let order = ops::argpartition_axis(&likely, experts - chosen, -1)?;
        let last: Vec<i32> = (experts - chosen..experts).collect();
        let which = order.take_axis(Array::from_slice(&last, &[chosen]), -1)?;
        let shares = likely.take_along_axis(&which, -1)?;
        if self.normalize {
            let whole = shares.sum_axis(-1, true)?;
            return Ok((which, shares.divide(whole)?));
        }
        Ok((which, shares))
    }
}

impl Expert {
    /// Computes the rows that chose this expert, and adds the weighted results to these rows of
    /// `sum`.
    fn add(&self, choices: &Choices, x: &Tensor, sum: &mut CpuTensor) -> Result<(), ComputeError> {
        if choices.is_empty() {
            return Ok(());
        }
        let rows: Vec<u32> = choices.iter().map(|(row, _)| *row).collect();
        let results = self.down.forward(&swiglu(&x.rows(&rows)?, &self.gate, &self.up)?)?;
        let CpuTensor { width, numbers } = results.cpu()?;
        for ((row, share), result) in choices.iter().zip(numbers.chunks_exact(*width)) {
            let sums = &mut sum.numbers[*row as usize * width..][..*width];
            sums.iter_mut().zip(result).for_each(|(sum, x)| *sum += share * x);
        }
        Ok(())
    }
}
