//! What flows through a pass: in our own memory on the CPU, in MLX's arrays on a GPU.
//!
//! A family does not look which. Its layers were made of weights of one kind ([`crate::linear`],
//! [`crate::norm`], [`crate::cache`]), and what they are given is of the same kind.

use mlx_rs::Array;
use mlx_rs::error::Exception;

use crate::cpu::Host;

/// A table of numbers, a row for each token.
pub(crate) enum Tensor {
    Host(Host),
    /// `[1, rows, width]`.
    Device(Array),
}

impl Tensor {
    /// Some of the rows.
    pub(crate) fn rows(&self, which: &[u32]) -> Result<Self, Exception> {
        match self {
            Self::Host(Host { width, numbers }) => {
                let rows = which.iter().map(|row| &numbers[*row as usize * width..][..*width]);
                Ok(Self::Host(Host { width: *width, numbers: rows.flatten().copied().collect() }))
            }
            Self::Device(array) => {
                let which = Array::from_slice(which, &[which.len() as i32]);
                array.take_axis(which, 1).map(Self::Device)
            }
        }
    }

    pub(crate) fn host(&self) -> Result<&Host, Exception> {
        match self {
            Self::Host(host) => Ok(host),
            Self::Device(_) => Err(Exception::custom("numbers on the device, weights on the host")),
        }
    }

    pub(crate) fn device(&self) -> Result<&Array, Exception> {
        match self {
            Self::Device(array) => Ok(array),
            Self::Host(_) => Err(Exception::custom("numbers on the host, weights on the device")),
        }
    }
}
