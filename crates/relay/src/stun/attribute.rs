//! The kinds of attributes, address families and error codes that are known here.

/// An attribute's type (the IANA registry "STUN Attributes").
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Kind(pub u16);

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $name:ident = $value:literal,)*) => {
        impl Kind {
            $($(#[doc = $doc])* pub const $name: Kind = Kind($value);)*
        }
    };
}

kinds! {
    /// What RFC 3489 called CHANGE-REQUEST, brought back by RFC 5780 §7.2.
    CHANGE_REQUEST = 0x0003,
    USERNAME = 0x0006,
    MESSAGE_INTEGRITY = 0x0008,
    ERROR_CODE = 0x0009,
    UNKNOWN_ATTRIBUTES = 0x000A,
    CHANNEL_NUMBER = 0x000C,
    LIFETIME = 0x000D,
    XOR_PEER_ADDRESS = 0x0012,
    DATA = 0x0013,
    REALM = 0x0014,
    NONCE = 0x0015,
    XOR_RELAYED_ADDRESS = 0x0016,
    REQUESTED_ADDRESS_FAMILY = 0x0017,
    EVEN_PORT = 0x0018,
    REQUESTED_TRANSPORT = 0x0019,
    DONT_FRAGMENT = 0x001A,
    MESSAGE_INTEGRITY_SHA256 = 0x001C,
    PASSWORD_ALGORITHM = 0x001D,
    USERHASH = 0x001E,
    XOR_MAPPED_ADDRESS = 0x0020,
    RESERVATION_TOKEN = 0x0022,
    /// RFC 6062 §6.2.1.
    CONNECTION_ID = 0x002A,
    ADDITIONAL_ADDRESS_FAMILY = 0x8000,
    ADDRESS_ERROR_CODE = 0x8001,
    PASSWORD_ALGORITHMS = 0x8002,
    ICMP = 0x8004,
    ALTERNATE_SERVER = 0x8023,
    FINGERPRINT = 0x8028,
    /// RFC 8016 §3.4.
    MOBILITY_TICKET = 0x8030,
}

impl Kind {
    /// Whether a receiver that does not know it has to refuse the message (RFC 8489 §14).
    pub fn must_be_understood(self) -> bool {
        self.0 < 0x8000
    }
}

/// An address family as attributes write it (RFC 8489 §14.1).
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    pub fn of(address: std::net::IpAddr) -> Family {
        match address {
            std::net::IpAddr::V4(_) => Family::V4,
            std::net::IpAddr::V6(_) => Family::V6,
        }
    }

    pub(crate) fn read(byte: u8) -> Option<Family> {
        match byte {
            1 => Some(Family::V4),
            2 => Some(Family::V6),
            _ => None,
        }
    }

    pub(crate) fn byte(self) -> u8 {
        match self {
            Family::V4 => 1,
            Family::V6 => 2,
        }
    }
}

macro_rules! error_codes {
    ($($name:ident = $code:literal $reason:literal,)*) => {
        /// What an error response says (RFC 8489 §14.8, RFC 8656 §19, RFC 6062 §6.3, RFC 8016 §3.5).
        #[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
        pub enum ErrorCode {
            $($name = $code,)*
        }

        impl ErrorCode {
            /// Its reason phrase.
            pub fn reason(self) -> &'static str {
                match self {
                    $(ErrorCode::$name => $reason,)*
                }
            }

            pub fn number(self) -> u16 {
                self as u16
            }
        }
    };
}

error_codes! {
    TryAlternate = 300 "Try Alternate",
    BadRequest = 400 "Bad Request",
    Unauthenticated = 401 "Unauthenticated",
    Forbidden = 403 "Forbidden",
    MobilityForbidden = 405 "Mobility Forbidden",
    UnknownAttribute = 420 "Unknown Attribute",
    AllocationMismatch = 437 "Allocation Mismatch",
    StaleNonce = 438 "Stale Nonce",
    AddressFamilyNotSupported = 440 "Address Family not Supported",
    WrongCredentials = 441 "Wrong Credentials",
    UnsupportedTransport = 442 "Unsupported Transport Protocol",
    PeerFamilyMismatch = 443 "Peer Address Family Mismatch",
    ConnectionExists = 446 "Connection Already Exists",
    ConnectionTimeout = 447 "Connection Timeout or Failure",
    AllocationQuotaReached = 486 "Allocation Quota Reached",
    ServerError = 500 "Server Error",
    InsufficientCapacity = 508 "Insufficient Capacity",
}
