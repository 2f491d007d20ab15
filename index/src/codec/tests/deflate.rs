//! A deflate writer for streams that no compressor would write.

#[derive(Default)]
pub(super) struct DeflateWriter {
    bytes: Vec<u8>,
    /// Bits used of the last byte; 0 when it is full.
    used: u32,
}

impl DeflateWriter {
    /// Writes the low `count` bits of `value`, lowest first.
    fn bits(&mut self, value: u32, count: u32) {
        for i in 0..count {
            if self.used == 0 {
                self.bytes.push(0);
            }
            let bit = (value >> i & 1) as u8;
            if let Some(last) = self.bytes.last_mut() {
                *last |= bit << self.used;
            }
            self.used = (self.used + 1) % 8;
        }
    }

    /// Writes a Huffman code: highest bit first.
    fn code(&mut self, code: u32, count: u32) {
        self.bits(code.reverse_bits() >> (32 - count), count);
    }

    pub(super) fn stored(&mut self, last: bool, content: &[u8]) {
        self.bits(u32::from(last), 3);
        self.used = 0;
        let len = content.len() as u16;
        self.bytes.extend_from_slice(&len.to_le_bytes());
        self.bytes.extend_from_slice(&(!len).to_le_bytes());
        self.bytes.extend_from_slice(content);
    }

    pub(super) fn begin_fixed(&mut self, last: bool) {
        self.bits(u32::from(last) | 1 << 1, 3);
    }

    pub(super) fn literal(&mut self, byte: u8) {
        match u32::from(byte) {
            low @ 0..=143 => self.code(0x30 + low, 8),
            high => self.code(0x190 + high - 144, 9),
        }
    }

    /// A match of three bytes at a distance of 1 to 4 or of exactly 32768.
    pub(super) fn match3(&mut self, distance: u32) {
        self.code(1, 7);
        match distance {
            1..=4 => self.code(distance - 1, 5),
            _ => {
                assert_eq!(distance, 32768);
                self.code(29, 5);
                self.bits(0x1fff, 13);
            }
        }
    }

    pub(super) fn end_block(&mut self) {
        self.code(0, 7);
    }

    pub(super) fn empty_fixed(&mut self, last: bool) {
        self.begin_fixed(last);
        self.end_block();
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// A gzip member around what was written. Its CRC is wrong, and nobody looks.
    pub(super) fn into_member(self) -> Vec<u8> {
        let mut member = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
        member.extend(self.bytes);
        member.extend([0; 8]);
        member
    }
}
