//! Choices made from a fuzzer's input: one byte for each, and always the first alternative once the input has run out.

/// An input, read from the front.
pub struct Choices<'i>(&'i [u8]);

impl<'i> Choices<'i> {
    /// Choices made from `input`.
    pub fn of(input: &'i [u8]) -> Self {
        Self(input)
    }

    /// The next byte, 0 at the end.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    /// A number below `end`, which is at least 1.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    /// One of `all`.
    pub fn one<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// Takes up to `most` bytes as they are.
    pub fn some(&mut self, most: usize) -> &'i [u8] {
        let length = self.below(most + 1).min(self.0.len());
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken
    }
}
