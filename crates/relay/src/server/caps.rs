//! How much is answered to who has not proven who he is: such a one may be anybody's spoofed address.
//!
//! Each address is answered so often in a second; and all of them together are sent no more bytes than they
//! have sent, but for a little, so that a flood from made-up addresses draws less than it costs.

use std::net::IpAddr;

/// Places among which addresses are spread; two at one place share what each may have.
const PLACES: usize = 1 << 12;
/// Bytes that are answered beyond those that came, at once and each second: to some thousand clients that come
/// at the same moment, whose proofs then bring more, and to those who only ask where they are seen.
const CREDIT_BYTES: u64 = 256 << 10;
const CREDIT_BYTES_PER_SECOND: u64 = 16 << 10;

/// What may still be answered.
#[derive(Debug)]
pub(crate) struct Caps {
    per_source: u8,
    second: u64,
    answered: Box<[u8]>,
    credit: u64,
    seed: u64,
}

impl Caps {
    /// `per_source` answers in a second to one address; 0 for no bound.
    pub(crate) fn new(per_source: u8, seed: u64) -> Caps {
        let answered = vec![0; PLACES].into();
        Caps { per_source, second: 0, answered, credit: CREDIT_BYTES, seed }
    }

    /// Notes so many bytes that came from who has proven himself: newcomers are answered by them. Beyond
    /// what stands by for those nothing is saved up.
    pub(crate) fn came(&mut self, bytes: usize) {
        self.credit = self.credit.saturating_add(bytes as u64).min(CREDIT_BYTES);
    }

    /// Notes what came from an address, in bytes, and looks whether so many may be answered.
    pub(crate) fn may_answer(
        &mut self,
        second: u64,
        source: IpAddr,
        came_bytes: usize,
        answer_bytes: usize,
    ) -> bool {
        if second > self.second {
            let passed = second - self.second;
            self.second = second;
            self.answered.fill(0);
            self.credit =
                self.credit.saturating_add(passed.saturating_mul(CREDIT_BYTES_PER_SECOND));
        }
        // Of what anybody may have sent an eighth is kept back, so that what is given each second is not
        // the part by which a flood gains.
        self.came(came_bytes - came_bytes / 8);
        let place = self.place(source);
        let answered = &mut self.answered[place];
        let is_over = self.per_source > 0 && *answered >= self.per_source;
        if is_over || self.credit < answer_bytes as u64 {
            return false;
        }
        *answered = answered.saturating_add(1);
        self.credit -= answer_bytes as u64;
        true
    }

    /// Of IPv6 a /64 is one customer's.
    fn place(&self, source: IpAddr) -> usize {
        let source = match source.to_canonical() {
            IpAddr::V4(ip) => u64::from(u32::from(ip)),
            IpAddr::V6(ip) => (u128::from(ip) >> 64) as u64,
        };
        let mixed = (source ^ self.seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ mixed >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        (mixed >> 52) as usize % PLACES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn an_address_is_answered_so_often_in_a_second() {
        let mut caps = Caps::new(3, 7);
        let mut may = |second| caps.may_answer(second, ONE, 100, 100);
        assert_eq!([may(1), may(1), may(1), may(1), may(2)], [true, true, true, false, true]);
    }

    #[test]
    fn a_flood_from_everywhere_draws_no_more_than_it_sends() {
        let mut caps = Caps::new(3, 7);
        let (mut came, mut answered) = (0, 0);
        for number in 0..1_000_000_u32 {
            let source = IpAddr::V4((number.wrapping_mul(2_654_435_761)).into());
            came += 28;
            if caps.may_answer(u64::from(number) / 100_000, source, 28, 120) {
                answered += 120;
            }
        }
        assert!(answered <= came, "{answered} of {came}");
        assert!(answered > came / 2, "some are real: {answered} of {came}");
    }

    /// Each asks once in vain, and once with a proof.
    #[test]
    fn newcomers_who_prove_themselves_are_answered_however_many_they_are() {
        let mut caps = Caps::new(100, 7);
        for number in 0..200_000_u32 {
            let source = IpAddr::V4(number.wrapping_mul(2_654_435_761).into());
            assert!(caps.may_answer(1 + u64::from(number) / 100_000, source, 28, 120), "{number}");
            caps.came(160);
        }
    }
}
