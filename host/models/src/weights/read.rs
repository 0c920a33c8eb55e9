//! Reads tensors, or while surveying notes what is wrong with them.

use mlx_rs::{Array, Dtype};

use super::{LoadStage, WeightLoader, on_device, settled};
use crate::error::{LoadError, TensorProblem};
use crate::source::{Encoding, Format, StoredTensor, gguf};

impl<'a> WeightLoader<'a> {
    /// The bytes of a tensor of floating-point numbers and how they are stored; none while
    /// surveying.
    pub(super) fn numbers(
        &mut self,
        name: &str,
        shape: &[i32],
    ) -> Result<Option<(Vec<u8>, Encoding)>, LoadError> {
        self.stored(name, shape, false)
    }

    pub(super) fn stored(
        &mut self,
        name: &str,
        shape: &[i32],
        words: bool,
    ) -> Result<Option<(Vec<u8>, Encoding)>, LoadError> {
        let Some((_, encoding)) = self.fitting(name, words) else { return Ok(None) };
        Ok(self.bytes(name, shape)?.map(|bytes| (bytes, encoding)))
    }

    /// The type in which a tensor is stored, if it holds numbers, or packed words, as wanted; what
    /// is wrong is noted.
    pub(super) fn fitting(&mut self, name: &str, words: bool) -> Option<(Dtype, Encoding)> {
        let (shown, tensor) = self.find(name);
        let Some(tensor) = tensor else {
            self.note(TensorProblem::Missing { tensor: shown });
            return None;
        };
        let stored = tensor.encoding.dtype();
        // Packed words are no numbers, and numbers no packed words.
        match stored.filter(|stored| (*stored == Dtype::Uint32) == words) {
            Some(dtype) => Some((dtype, tensor.encoding.clone())),
            None => {
                let found = tensor.encoding.name().to_owned();
                self.note(TensorProblem::Encoding { tensor: shown, found });
                None
            }
        }
    }

    /// A tensor of floating-point numbers, in the type we compute in.
    pub(super) fn dense(&mut self, name: &str, shape: &[i32]) -> Result<Array, LoadError> {
        self.typed(name, shape, self.dtype)
    }

    pub(super) fn typed(
        &mut self,
        name: &str,
        shape: &[i32],
        dtype: Dtype,
    ) -> Result<Array, LoadError> {
        let (shown, _) = self.find(name);
        let Some((stored, _)) = self.fitting(name, dtype == Dtype::Uint32) else {
            return Ok(Array::from_f32(0.0));
        };
        let Some(bytes) = self.bytes(name, shape)? else { return Ok(Array::from_f32(0.0)) };
        // SAFETY: `Checkpoint` checked that the bytes are as many as shape and type call for, and
        // `bytes` that the shape is this one. MLX copies them, byte by byte, so alignment does not
        // matter.
        let array = unsafe { Array::from_raw_data(bytes.as_ptr().cast(), shape, stored) };
        drop(bytes);
        let array =
            if stored == dtype { Ok(array) } else { array.as_dtype(dtype).and_then(settled) };
        on_device(&shown, array)
    }

    /// A tensor's bytes; none while surveying, when the tensor is checked and what is wrong noted.
    pub(super) fn bytes(
        &mut self,
        name: &str,
        shape: &[i32],
    ) -> Result<Option<Vec<u8>>, LoadError> {
        let (shown, Some(tensor)) = self.find(name) else {
            let (tensor, _) = self.find(name);
            self.note(TensorProblem::Missing { tensor });
            return Ok(None);
        };
        match &mut self.stage {
            LoadStage::Survey(survey) => {
                survey.bytes += tensor.bytes;
                survey.taken.insert(shown.clone());
                if tensor.shape != shape {
                    self.note(TensorProblem::Shape {
                        tensor: shown,
                        expected: shape.to_vec(),
                        found: tensor.shape.clone(),
                    });
                }
                Ok(None)
            }
            LoadStage::Read { done, all, progress } => {
                let bytes = self.source.checkpoint.read(tensor)?;
                *done += tensor.bytes;
                progress((*done as f64 / *all as f64) as f32);
                Ok(Some(bytes))
            }
        }
    }

    /// A tensor by Hugging Face's name, and its name in the files.
    pub(super) fn find(&self, name: &str) -> (String, Option<&'a StoredTensor>) {
        let shown = match self.source.format {
            Format::Gguf => gguf::rename(name).unwrap_or_else(|| name.to_owned()),
            Format::Safetensors => name.to_owned(),
        };
        let source = self.source;
        let tensor = source.checkpoint.tensors.get(&shown);
        (shown, tensor)
    }

    pub(super) fn note(&mut self, problem: TensorProblem) {
        if let LoadStage::Survey(survey) = &mut self.stage {
            survey.problems.push(problem);
        }
    }

    /// Notes that a tensor of the files is used.
    pub(super) fn took(&mut self, shown: &str) {
        if let LoadStage::Survey(survey) = &mut self.stage {
            survey.taken.insert(shown.to_owned());
        }
    }
}
