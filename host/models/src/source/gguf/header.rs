//! A GGUF file's header, read byte by byte: no length that it claims is believed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};

use super::super::blocks::{BLOCK, BlockType};
use super::super::{Encoding, StoredTensor, shape};
use super::metadata::{GgufMetadata, MetaValue};

const SUPPORTED_VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;
/// Longer text than any tokenizer or template needs.
const STRING_BYTES_MAX: u64 = 16 << 20;

/// Why a header was not read.
pub(super) enum HeaderError {
    Version(u32),
    Damaged(String),
    Read(std::io::Error),
}

impl From<String> for HeaderError {
    fn from(what: String) -> Self {
        Self::Damaged(what)
    }
}

/// The metadata and the tensors of a file of `length` bytes.
pub(super) fn read(
    file: &File,
    length: u64,
) -> Result<(GgufMetadata, BTreeMap<String, StoredTensor>), HeaderError> {
    HeaderReader { from: BufReader::new(file), at: 0, length }.header()
}

/// Reads forward and knows how much is left, so that no claimed length is believed.
struct HeaderReader<'a> {
    from: BufReader<&'a File>,
    at: u64,
    length: u64,
}

impl HeaderReader<'_> {
    fn header(&mut self) -> Result<(GgufMetadata, BTreeMap<String, StoredTensor>), HeaderError> {
        if self.take::<4>()? != *b"GGUF" {
            return Err(HeaderError::Damaged("it does not begin with GGUF".to_owned()));
        }
        let version = self.u32()?;
        if !SUPPORTED_VERSIONS.contains(&version) {
            return Err(HeaderError::Version(version));
        }
        let tensor_count = self.u64()?;
        let entry_count = self.u64()?;

        let mut metadata = GgufMetadata::default();
        for _ in 0..entry_count {
            let key = self.text()?;
            let kind = self.u32()?;
            let value = self.value(kind).map_err(|bad| match bad {
                HeaderError::Damaged(what) => {
                    HeaderError::Damaged(format!("metadata {key:?}: {what}"))
                }
                other => other,
            })?;
            if metadata.entries.insert(key.clone(), value).is_some() {
                return Err(HeaderError::Damaged(format!("metadata {key:?} occurs twice")));
            }
        }

        let mut tensors = BTreeMap::new();
        for _ in 0..tensor_count {
            let (name, tensor) = self.tensor()?;
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(HeaderError::Damaged(format!("tensor {name:?} occurs twice")));
            }
        }
        self.place(&metadata, &mut tensors)?;
        Ok((metadata, tensors))
    }

    /// Turns offsets within the data into offsets within the file, and checks them.
    fn place(
        &self,
        metadata: &GgufMetadata,
        tensors: &mut BTreeMap<String, StoredTensor>,
    ) -> Result<(), String> {
        let alignment = match metadata.whole("general.alignment")? {
            None => 32,
            Some(value) => u64::try_from(value)
                .ok()
                .filter(|value| value.is_power_of_two() && *value <= 1 << 20)
                .ok_or_else(|| format!("general.alignment is {value}, not a small power of two"))?,
        };
        let start = self.at.next_multiple_of(alignment);
        for (name, tensor) in tensors {
            let end = start
                .checked_add(tensor.offset)
                .inspect(|offset| tensor.offset = *offset)
                .and_then(|offset| offset.checked_add(tensor.bytes));
            if end.is_none_or(|end| end > self.length) {
                return Err(format!(
                    "tensor {name:?} of {} bytes ends beyond the file's {} bytes",
                    tensor.bytes, self.length
                ));
            }
        }
        Ok(())
    }

    fn tensor(&mut self) -> Result<(String, StoredTensor), HeaderError> {
        let name = self.text()?;
        let sides = self.u32()?;
        if sides > 4 {
            return Err(HeaderError::Damaged(format!(
                "tensor {name:?} has {sides} sides, the limit is 4"
            )));
        }
        let mut dimensions = Vec::new();
        for _ in 0..sides {
            dimensions.push(self.u64()?);
        }
        dimensions.reverse();
        let shape = shape(dimensions).map_err(|what| format!("tensor {name:?} has {what}"))?;
        let encoding = encoding(self.u32()?);
        let offset = self.u64()?;
        let mut tensor = StoredTensor { file: 0, offset, bytes: 0, shape, encoding };
        tensor.bytes = match &tensor.encoding {
            Encoding::F32 | Encoding::U32 => tensor.elements() * 4,
            Encoding::F16 | Encoding::Bf16 => tensor.elements() * 2,
            Encoding::Block(kind) => {
                let row = tensor.shape.last().copied().unwrap_or(1).unsigned_abs() as usize;
                if !row.is_multiple_of(BLOCK) {
                    return Err(HeaderError::Damaged(format!(
                        "tensor {name:?} has rows of {row}, no multiple of {BLOCK}"
                    )));
                }
                tensor.elements() / BLOCK as u64 * kind.bytes() as u64
            }
            // It will be refused by name if the model needs it.
            Encoding::Other(_) => 0,
        };
        Ok((name, tensor))
    }

    fn value(&mut self, kind: u32) -> Result<MetaValue, HeaderError> {
        Ok(match kind {
            7 => MetaValue::Bool(self.take::<1>()?[0] != 0),
            8 => MetaValue::Text(self.text()?),
            6 | 12 => MetaValue::Float(self.float(kind)?),
            9 => {
                let kind = self.u32()?;
                let count = self.u64()?;
                // Each element takes at least a byte.
                if count > self.length - self.at {
                    return Err(HeaderError::Damaged(format!(
                        "an array of {count} elements in a file of {} bytes",
                        self.length
                    )));
                }
                self.array(kind, count)?
            }
            _ => MetaValue::Integer(self.integer(kind)?),
        })
    }

    fn array(&mut self, kind: u32, count: u64) -> Result<MetaValue, HeaderError> {
        let counted = 0..count;
        Ok(match kind {
            7 => {
                MetaValue::Bools(counted.map(|_| Ok(self.take::<1>()?[0] != 0)).collect::<Result<
                    _,
                    HeaderError,
                >>(
                )?)
            }
            8 => MetaValue::Texts(counted.map(|_| self.text()).collect::<Result<_, _>>()?),
            6 | 12 => {
                MetaValue::Floats(counted.map(|_| self.float(kind)).collect::<Result<_, _>>()?)
            }
            _ => {
                MetaValue::Integers(counted.map(|_| self.integer(kind)).collect::<Result<_, _>>()?)
            }
        })
    }

    fn float(&mut self, kind: u32) -> Result<f64, HeaderError> {
        Ok(match kind {
            6 => f64::from(f32::from_le_bytes(self.take()?)),
            _ => f64::from_le_bytes(self.take()?),
        })
    }

    fn integer(&mut self, kind: u32) -> Result<i64, HeaderError> {
        Ok(match kind {
            0 => i64::from(u8::from_le_bytes(self.take()?)),
            1 => i64::from(i8::from_le_bytes(self.take()?)),
            2 => i64::from(u16::from_le_bytes(self.take()?)),
            3 => i64::from(i16::from_le_bytes(self.take()?)),
            4 => i64::from(self.u32()?),
            5 => i64::from(i32::from_le_bytes(self.take()?)),
            10 => i64::try_from(self.u64()?).unwrap_or(i64::MAX),
            11 => i64::from_le_bytes(self.take()?),
            other => return Err(HeaderError::Damaged(format!("value type {other} is unknown"))),
        })
    }

    fn text(&mut self) -> Result<String, HeaderError> {
        let length = self.u64()?;
        if length > STRING_BYTES_MAX.min(self.length - self.at) {
            return Err(HeaderError::Damaged(format!(
                "a text of {length} bytes, {} are left",
                self.length - self.at
            )));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|bad| {
            let start: String = String::from_utf8_lossy(bad.as_bytes()).chars().take(40).collect();
            HeaderError::Damaged(format!("{start:?} is not UTF-8"))
        })
    }

    fn u32(&mut self) -> Result<u32, HeaderError> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, HeaderError> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], HeaderError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), HeaderError> {
        if bytes.len() as u64 > self.length - self.at {
            return Err(HeaderError::Damaged(format!(
                "it ends in its header, after {} bytes",
                self.length
            )));
        }
        self.from.read_exact(bytes).map_err(HeaderError::Read)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// The encoding that a number of ggml's `enum ggml_type` stands for.
fn encoding(number: u32) -> Encoding {
    let name = match number {
        0 => return Encoding::F32,
        1 => return Encoding::F16,
        2 => return Encoding::Block(BlockType::Q4_0),
        3 => return Encoding::Block(BlockType::Q4_1),
        8 => return Encoding::Block(BlockType::Q8_0),
        30 => return Encoding::Bf16,
        6 => "Q5_0",
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        14 => "Q6_K",
        15 => "Q8_K",
        16..=23 | 29 => "an IQ type",
        24..=27 => "integers",
        28 => "F64",
        34 | 35 => "a ternary type",
        39 => "MXFP4",
        other => return Encoding::Other(format!("ggml type {other}")),
    };
    Encoding::Other(name.to_owned())
}
