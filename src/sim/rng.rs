//! All chance of a run comes from here: splitmix64, from the run's seed.

/// A sequence of numbers that its seed decides.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A sequence that takes no part in this one: what one part of the world draws leaves the others as they are.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    /// In `0 .. bound`; 0 for a bound of 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    /// In `low ..= high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True `ppm` times in a million.
    pub(crate) fn chance(&mut self, ppm: u64) -> bool {
        self.below(1_000_000) < ppm
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// Around `mean`, from nearly nothing to four times as much: short waits are more frequent than long ones.
    pub(crate) fn around(&mut self, mean: u64) -> u64 {
        let (a, b) = (self.below(2048), self.below(2048));
        1 + mean * (a * b / 1024) / 1024
    }
}

/// The finalizer of splitmix64: any change of the input changes half of the output.
pub(crate) fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
