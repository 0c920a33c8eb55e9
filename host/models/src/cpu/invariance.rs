//! Whether what MLX computes for a row depends on how many rows there are. Our own sums are tested
//! where they stand; this asks it of the operations in between, which are MLX's.

use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, fast, ops};

use super::gate::swiglu;
use crate::linear::{Embedding, Linear, Matrix};

fn noise(seed: u32, shape: &[i32]) -> Array {
    let mut state = seed | 1;
    let count: i32 = shape.iter().product();
    let numbers: Vec<f32> = (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1 << 22) as f32 - 2.0
        })
        .collect();
    Array::from_slice(&numbers, shape)
}

/// Computes with all rows at once, and with each row and each few rows alone.
fn check(what: &str, x: &Array, operation: impl Fn(&Array) -> Array) {
    let bits = |array: &Array| -> Vec<u32> {
        let flat = array.reshape(&[-1]).unwrap();
        flat.to_vec_exact::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    let rows = x.dim(1);
    let together = operation(x);
    for count in [1, 2, 3, 5, 8] {
        for from in [0, 1, rows - count] {
            let some = operation(&x.try_index((.., from..from + count)).unwrap());
            let those = together.try_index((.., from..from + count)).unwrap();
            assert_eq!(bits(&some), bits(&those), "{what}: {from} and {count} of {rows} rows");
        }
    }
}

#[test]
fn what_mlx_computes_between_our_sums_does_not_depend_on_the_number_of_rows() {
    crate::cpu::prepare(None);
    for width in [32, 50, 576, 1537] {
        let x = noise(3, &[1, 41, width]);
        let weight = noise(4, &[width]);
        check("rms_norm", &x, |x| fast::rms_norm(x, Some(&weight), 1e-5).unwrap());
        check("swiglu", &x, |x| swiglu(x, &x.add(&weight).unwrap()).unwrap());
        check("add", &x, |x| x.add(x.multiply(&weight).unwrap()).unwrap());
        let dense = Matrix::dense(&noise(6, &[70, width])).unwrap();
        let biased = Linear { weight: dense, bias: Some(noise(7, &[70])) };
        check("linear with bias", &x, |x| biased.forward(x).unwrap());
        let plain = Linear { weight: Matrix::dense(&noise(8, &[70, width])).unwrap(), bias: None };
        check("linear", &x, |x| plain.forward(x).unwrap());
    }
    let heads = noise(9, &[1, 41, 4, 64]);
    let weight = noise(10, &[64]);
    check("norm by head", &heads, |x| fast::rms_norm(x, Some(&weight), 1e-6).unwrap());
    let table = Embedding { weight: Matrix::dense(&noise(11, &[96, 50])).unwrap() };
    let tokens: Vec<u32> = (0..41).map(|token| token * 7 % 96).collect();
    let tokens = Array::from_slice(&tokens, &[1, 41]);
    check("embedding", &tokens, |tokens| {
        ops::multiply(table.forward(tokens).unwrap(), Array::from_f32(1.0)).unwrap()
    });
}
