//! Chance, from a seed: the same numbers each time, on every machine.

use std::f64::consts::TAU;

/// A stream of numbers. SplitMix64 (Steele, Lea and Flood 2014): small, and good enough for this.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    /// The stream of this name, among those of a seed: adding a tenant changes no other's.
    pub(crate) fn new(seed: u64, stream: &str) -> Self {
        let name = stream.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let mut rng = Self(seed ^ name);
        rng.next();
        rng
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// 0 to 1, without 1.
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn chance(&mut self, chance: f64) -> bool {
        self.share() < chance
    }

    pub(crate) fn between(&mut self, min: u32, max: u32) -> u32 {
        let span = u64::from(max - min) + 1;
        min + u32::try_from(self.next() % span).unwrap_or(0)
    }

    /// With mean 0 and deviation 1 (Box and Muller 1958).
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.share()).ln()).sqrt();
        radius * (TAU * self.share()).cos()
    }

    /// The time to the next of events that come at this rate by chance, in seconds.
    pub(crate) fn pause(&mut self, rate: f64) -> f64 {
        -(1.0 - self.share()).ln() / rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_is_what_was_asked_for() {
        let mut rng = Rng::new(7, "test");
        let n = 20_000;
        let mean = (0..n).map(|_| rng.pause(4.0)).sum::<f64>() / f64::from(n);
        assert!((mean - 0.25).abs() < 0.01, "{mean}");
        let normals: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
        let square = normals.iter().map(|x| x * x).sum::<f64>() / f64::from(n);
        assert!((square - 1.0).abs() < 0.05, "{square}");
        assert!((0..n).all(|_| (3..=5).contains(&rng.between(3, 5))));
        assert_ne!(Rng::new(7, "a").next(), Rng::new(7, "b").next());
        assert_eq!(Rng::new(7, "a").next(), Rng::new(7, "a").next());
    }
}
