//! Random numbers that repeat.

/// A xorshift generator (Marsaglia, 2003): the same numbers from the same seed, on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// One that begins with this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        // Zero is the one state that the generator does not leave.
        Self(if seed == 0 { 0x9e37_79b9_7f4a_7c15 } else { seed })
    }

    /// A number below `limit`; 0 where there is none below.
    pub const fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        match self.0.checked_rem(limit) {
            Some(number) => number,
            None => 0,
        }
    }

    /// True once in so many times.
    pub const fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of these, of which there is at least one.
    pub fn of<T: Copy, const N: usize>(&mut self, choices: &[T; N]) -> T {
        const { assert!(N > 0, "a choice among none") };
        let chosen = self.below(N as u64);
        let Some((_, choice)) = (0..).zip(choices).find(|(number, _)| *number == chosen) else {
            unreachable!("below the number of choices")
        };
        *choice
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_none_is_out_of_reach() {
        let numbers = |seed| {
            let mut random = Random::new(seed);
            std::iter::repeat_with(|| random.below(6)).take(100).collect::<Vec<_>>()
        };
        assert_eq!(numbers(0), numbers(0));
        assert_ne!(numbers(1), numbers(2));
        assert!((0..6).all(|number| numbers(3).contains(&number)) && !numbers(3).contains(&6));
        let mut random = Random::new(4);
        assert!((0..100).map(|_| random.of(&["a", "b"])).any(|choice| choice == "b"));
    }
}
