//! Mean, deviation and range of a figure.

use serde::{Deserialize, Serialize};

/// Mean and spread of the same figure over iterations.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The mean of the values.
    pub mean: f64,
    /// The standard deviation of a sample; 0 of a single value.
    pub deviation: f64,
    /// The smallest value.
    pub least: f64,
    /// The largest value.
    pub most: f64,
}

impl Spread {
    /// None where there is no value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().collect();
        let mean = mean(&values)?;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = (squares / (count(&values) - 1.0).max(1.0)).sqrt();
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Some(Self { mean, deviation, least, most })
    }

    /// Of one value.
    pub(crate) fn single(value: f64) -> Self {
        Self { mean: value, deviation: 0.0, least: value, most: value }
    }

    /// Is there a value that both may have had?
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.least <= other.most && other.least <= self.most
    }
}

/// None where there is no value.
pub(crate) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / count(values))
}

/// The value that `share` of all values do not exceed (nearest rank); None where there is none.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    debug_assert!(sorted.is_sorted(), "the values of a percentile are sorted");
    let rank = (share * count(sorted)).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

fn count(values: &[f64]) -> f64 {
    values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_occurred() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.50), Some(50.0));
        assert_eq!(percentile(&hundred, 0.99), Some(99.0));
        assert_eq!(percentile(&hundred, 1.0), Some(100.0));
        assert_eq!(percentile(&[1.0, 9.0], 0.99), Some(9.0));
        assert_eq!(percentile(&[4.0], 0.0), Some(4.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn a_spread_is_that_of_a_sample() {
        let spread = Spread::of([2.0, 4.0, 6.0]).expect("has values");
        assert_eq!(spread, Spread { mean: 4.0, deviation: 2.0, least: 2.0, most: 6.0 });
        assert_eq!(Spread::of([7.0]).map(|one| one.deviation), Some(0.0));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn ranges_overlap_when_they_touch() {
        let range = |least, most| Spread::of([least, most]).expect("has values");
        assert!(range(1.0, 3.0).overlaps(&range(3.0, 4.0)));
        assert!(range(1.0, 9.0).overlaps(&range(3.0, 4.0)));
        assert!(!range(1.0, 3.0).overlaps(&range(3.1, 4.0)));
        assert!(!range(3.1, 4.0).overlaps(&range(1.0, 3.0)));
    }
}
