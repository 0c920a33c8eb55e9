//! The packed product against sums in f64, against itself on other paths, and against itself in
//! other company.

use super::activations::Activations;
use super::*;
use crate::noise::noise;

/// A matrix as files have it, and what it means.
struct TestMatrix {
    stored: PackedFormat,
    outputs: usize,
    inputs: usize,
    group: usize,
    codes: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
}

impl TestMatrix {
    fn new(stored: PackedFormat, outputs: usize, inputs: usize, group: usize) -> Self {
        let seed = (outputs * 31 + inputs * 7 + group) as u64;
        let most = if stored.bits == Bits::Four { 15 } else { 255 };
        let code = |number: &f32| ((number + 2.0) / 4.0 * (f32::from(most) + 1.0)) as u8;
        let count = outputs * inputs / group;
        let encoded = |seed: u64, size: f32| -> Vec<u8> {
            let numbers = noise(seed, count).into_iter().map(|number| number * size);
            match stored.scales {
                ScaleType::F16 => numbers.flat_map(|n| f16::from_f32(n).to_le_bytes()).collect(),
                ScaleType::Bf16 => numbers.flat_map(|n| bf16::from_f32(n).to_le_bytes()).collect(),
                ScaleType::F32 => numbers.flat_map(f32::to_le_bytes).collect(),
            }
        };
        let mut codes: Vec<u8> = noise(seed, outputs * inputs).iter().map(code).collect();
        // The ends of the range, side by side.
        codes[..inputs.min(16)].fill(most);
        let (scales, biases) = (encoded(seed + 1, 0.02), encoded(seed + 2, 0.1));
        Self { stored, outputs, inputs, group, codes, scales, biases }
    }

    fn packed(&self) -> Packed {
        let affine = AffineMatrix {
            outputs: self.outputs,
            inputs: self.inputs,
            group: self.group,
            codes: &|output, number, codes| {
                let from = output * self.inputs + number * BLOCK;
                codes.copy_from_slice(&self.codes[from..][..BLOCK]);
            },
            scales: &self.scales,
            biases: &self.biases,
        };
        Packed::new(self.stored, &affine)
    }

    fn group_of(&self, output: usize, input: usize) -> (f32, f32) {
        let at = output * (self.inputs / self.group) + input / self.group;
        (self.stored.scale(&self.scales, at), self.stored.scale(&self.biases, at))
    }

    /// The product in f64 with the numbers as they are, and how far ours may be off: half a step of
    /// fixed point for each number, and f32's rounding of each group's two terms.
    fn reference(&self, x: &[f32], output: usize) -> (f64, f64) {
        let (mut sum, mut off) = (0.0, 0.0);
        for (block, x) in x.chunks(BLOCK).enumerate() {
            let largest = x.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            let step = f64::from(largest) / (127.0 * 256.0);
            let (scale, bias) = self.group_of(output, block * BLOCK);
            let (scale, bias) = (f64::from(scale), f64::from(bias));
            let (mut terms, mut total) = (0.0, 0.0);
            for (i, x) in x.iter().enumerate() {
                let code = f64::from(self.codes[output * self.inputs + block * BLOCK + i]);
                sum += (scale * code + bias) * f64::from(*x);
                terms += code * f64::from(*x);
                total += f64::from(*x);
                off += (scale * code + bias).abs() * step * 0.51;
            }
            off += ((scale * terms).abs() + (bias * total).abs())
                * f64::from(f32::EPSILON)
                * (self.inputs / BLOCK) as f64
                * 2.0;
        }
        (sum, off + 1e-30)
    }
}

impl Packed {
    /// Some matrix, for the tests of others.
    pub(in crate::cpu) fn any(outputs: usize, inputs: usize) -> Self {
        let stored = PackedFormat { bits: Bits::Four, scales: ScaleType::F16 };
        TestMatrix::new(stored, outputs, inputs, 32).packed()
    }
}

/// All rows in one product.
fn multiply(path: InstructionSet, packed: &Packed, x: &[f32]) -> Vec<f32> {
    let (inputs, outputs) = (packed.inputs(), packed.outputs());
    let rows = x.len() / inputs;
    let mut activations = Activations::new(path);
    // As if others had left this in the memory.
    activations.clear(rows + 3, inputs);
    let junk = vec![f32::NAN; inputs];
    for &panel in activations.panels() {
        // SAFETY: each row is the junk's.
        unsafe { activations.fill(panel, &|_| junk.as_ptr()) };
    }
    activations.clear(rows, inputs);
    for &panel in activations.panels() {
        // SAFETY: `x` has as many rows.
        unsafe { activations.fill(panel, &|row| x[row * inputs..].as_ptr()) };
    }
    // Wider than it must be, and poisoned: what lies between must stay.
    let stride = outputs + 5;
    let mut out = vec![f32::NAN; rows * stride];
    // SAFETY: the room is there.
    unsafe {
        packed.multiply(&activations, activations.panels(), 0..outputs, out.as_mut_ptr(), stride);
    }
    assert!(out.chunks(stride).all(|row| row[outputs..].iter().all(|x| x.is_nan())));
    out.chunks(stride).flat_map(|row| &row[..outputs]).copied().collect()
}

/// Rows of very different sizes, with zeros, and one far off in each.
fn rows(seed: u64, rows: usize, inputs: usize) -> Vec<f32> {
    let mut x = noise(seed, rows * inputs);
    for (row, x) in x.chunks_mut(inputs).enumerate() {
        let size = [1.0, 1e-3, 300.0, 1e-12][row % 4];
        x.iter_mut().for_each(|x| *x *= size);
        x[(row * 7) % inputs] *= 50.0;
        if row % 5 == 4 {
            x[..BLOCK].fill(0.0);
        }
    }
    x
}

fn formats() -> Vec<PackedFormat> {
    let all = [ScaleType::F16, ScaleType::Bf16, ScaleType::F32];
    let both = [Bits::Four, Bits::Eight];
    both.into_iter().flat_map(|bits| all.map(|scales| PackedFormat { bits, scales })).collect()
}

#[test]
fn products_are_within_the_stated_bound_of_double_precision() {
    for stored in formats() {
        for (outputs, inputs, group) in
            [(1, 32, 32), (16, 64, 64), (17, 96, 32), (33, 128, 128), (50, 384, 64), (95, 576, 32)]
        {
            let made = TestMatrix::new(stored, outputs, inputs, group);
            let packed = made.packed();
            for count in [1, 2, 5, 8, 9, 40] {
                let x = rows(count as u64, count, inputs);
                let got = multiply(InstructionSet::best(), &packed, &x);
                for (row, x) in x.chunks(inputs).enumerate() {
                    for output in 0..outputs {
                        let (want, bound) = made.reference(x, output);
                        let got = f64::from(got[row * outputs + output]);
                        assert!(
                            (got - want).abs() <= bound,
                            "{stored:?} {outputs}x{inputs}/{group}, row {row} of {count}, output \
                             {output}: {got}, want {want} within {bound}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn every_path_of_this_machine_agrees_to_the_bit() {
    for stored in formats() {
        for (outputs, inputs, group) in [(33, 96, 32), (16, 128, 64), (7, 256, 128)] {
            let packed = TestMatrix::new(stored, outputs, inputs, group).packed();
            for count in 1..=12 {
                let x = rows(count as u64 + 40, count, inputs);
                let bits = |path| -> Vec<u32> {
                    multiply(path, &packed, &x).into_iter().map(f32::to_bits).collect()
                };
                let scalar = bits(InstructionSet::Scalar);
                for path in InstructionSet::all() {
                    assert_eq!(bits(path), scalar, "{path:?} {stored:?} {inputs}, {count} rows");
                }
            }
        }
    }
}

/// The arithmetic said in the plainest way: what all paths must agree with, to the bit.
#[test]
fn products_are_the_documented_sum_to_the_bit() {
    for stored in formats() {
        let made = TestMatrix::new(stored, 21, 192, 64);
        let x = rows(9, 3, 192);
        let got = multiply(InstructionSet::best(), &made.packed(), &x);
        for (row, x) in x.chunks(192).enumerate() {
            for output in 0..21 {
                let mut total = 0.0_f32;
                for (block, x) in x.chunks(BLOCK).enumerate() {
                    let largest = x.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                    let code = |x: &f32| (x * (32512.0 / largest)).round_ties_even() as i32;
                    let codes: Vec<i32> =
                        x.iter().map(|x| if largest == 0.0 { 0 } else { code(x) }).collect();
                    let at = output * 192 + block * BLOCK;
                    let products = codes.iter().zip(&made.codes[at..]);
                    let sum: i32 = products.map(|(x, code)| x * i32::from(*code)).sum();
                    let x_scale = largest / 32512.0;
                    let (scale, bias) = made.group_of(output, block * BLOCK);
                    total = (sum as f32).mul_add(scale * x_scale, total);
                    let x_sum = codes.iter().sum::<i32>() as f32 * x_scale;
                    total = bias.mul_add(x_sum, total);
                }
                assert_eq!(got[row * 21 + output].to_bits(), total.to_bits(), "{stored:?}");
            }
        }
    }
}

#[test]
fn a_row_is_the_same_among_any_number_of_rows() {
    for path in InstructionSet::all() {
        for stored in formats() {
            let packed = TestMatrix::new(stored, 37, 160, 32).packed();
            let x = rows(3, 40, 160);
            let alone: Vec<f32> = x.chunks(160).flat_map(|x| multiply(path, &packed, x)).collect();
            for count in 1..=40 {
                let together = multiply(path, &packed, &x[..count * 160]);
                let same = together.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{path:?} {stored:?} among {count}");
            }
        }
    }
}

#[test]
fn a_row_of_the_table_is_what_was_packed() {
    for stored in formats() {
        let made = TestMatrix::new(stored, 37, 128, 64);
        let packed = made.packed();
        for output in 0..37 {
            let mut row = vec![f32::NAN; 128];
            packed.row(output, &mut row);
            for (input, got) in row.into_iter().enumerate() {
                let (scale, bias) = made.group_of(output, input);
                assert_eq!(got, scale * f32::from(made.codes[output * 128 + input]) + bias);
            }
        }
    }
}

#[test]
fn what_is_no_number_spoils_its_own_row_alone() {
    let packed = TestMatrix::new(formats()[0], 20, 64, 32).packed();
    let clean = rows(1, 3, 64);
    let want = multiply(InstructionSet::best(), &packed, &clean);
    for poison in [f32::NAN, f32::INFINITY] {
        let mut x = clean.clone();
        x[64 + 40] = poison;
        for path in InstructionSet::all() {
            let got = multiply(path, &packed, &x);
            assert!(got[20..40].iter().all(|x| x.is_nan()), "{path:?}");
            assert_eq!((&got[..20], &got[40..]), (&want[..20], &want[40..]), "{path:?}");
        }
    }
}
