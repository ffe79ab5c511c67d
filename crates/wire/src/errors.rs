//! The wire's error vocabulary, made from `errors.toml` by `cargo xtask codegen`.

/// A word of the error vocabulary (`spec/xirsys.md` §1.6 and §3).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Code {
    /// The neuron failed to carry this out.
    Internal,
    /// There is nothing under this path and key.
    NotFound,
    /// The credentials are missing, wrong, or of an inactive account, the token has expired or was revoked, or a rule denies this address.
    Unauthorized,
    /// These credentials are right, but they, or rules of the path, do not permit this call.
    NotAllowed,
    /// This service has no such method.
    MethodNotFound,
    /// The key is missing, empty, longer than 512 bytes, or holds a control character.
    BadName,
    /// The query or the body cannot be read; the detail says where.
    BadRequest,
    /// A path segment is empty after decoding, too long, `.` or `..`, or holds a control character.
    BadSegment,
    /// The layer is missing, or is not one that this account may name.
    BadLayerPrefix,
    /// The credentials name more than one level of sub-account.
    MalformedPartner,
    /// There is no such account.
    InvalidAccount,
    /// Another account of this owner has that e-mail address.
    EmailExists,
    /// Another account of this owner has that name.
    UsernameExists,
    /// The account name is empty, longer than 64 bytes, `sys`, starts with `!` or `$`, or holds one of `/ # : )`.
    BadUsername,
    /// An account keeps its name; make a new account instead.
    UsernameIsImmutable,
    /// An account keeps its e-mail address; make a new account instead.
    EmailIsImmutable,
    /// `v` must be an object with the account's fields.
    RequireAccountDetails,
    /// The e-mail address is missing or is not of the form name@domain.
    BadEmail,
    /// An e-mail address is required.
    RequireEmail,
    /// A password is required.
    RequirePassword,
    /// The password must be a string of 4 to 256 bytes.
    BadPasswordFormat,
    /// The domain is not a legal path segment.
    BadDomainFormat,
    /// The application is not a legal path segment.
    BadAppFormat,
    /// The room is not a legal path segment.
    BadRoomFormat,
    /// This namespace path exists already.
    PathExists,
    /// This domain exists already.
    DomainExists,
    /// This application exists already.
    ApplicationExists,
    /// This room exists already.
    RoomExists,
    /// Another entry of this layer and path has that secondary key.
    KeyExists,
    /// The path is not in the namespace; PUT it to /_ns first.
    NoNamespace,
    /// There is no such domain.
    NoDomain,
    /// There is no such application.
    NoApplication,
    /// There is no such room.
    NoRoom,
    /// No running neuron provides this service.
    NoService,
    /// This needs an administrator of the account.
    UserNotAdmin,
    /// This call has no meaning for the caller's own account.
    BadMeContext,
    /// These credentials do not permit that domain.
    UnauthorizedDomain,
    /// The body needs `v`.
    ValueMissing,
    /// This path is strict: an update must carry the `_ver_` that it read.
    VerMissing,
    /// The entry has changed since the `_ver_` that was given; read it again.
    VersionConflict,
    /// Another update of this entry is in progress.
    Locked,
    /// That Idempotency-Key was used before with another request.
    IdempotencyConflict,
    /// The parameter `type` is required: `signal` or `turn`.
    RequireTypeParam,
    /// The parameter `type` must be `signal` or `turn`.
    UnrecognizedTypeParam,
    /// The token was made for another path.
    ChannelOverrideNotAllowed,
    /// The request is larger than this neuron's limit.
    TooLarge,
    /// The rate limit of this address or account is used up; Retry-After says when to try again.
    TooManyRequests,
    /// The store cannot take this now (disk full, or it is away). Nothing was changed; only where the disk itself fails, a restart may find that it was.
    StoreUnavailable,
    /// The store took this without a quorum; the condition cannot be promised.
    StoreDegraded,
    /// The neuron sheds load; Retry-After says when to try again.
    Overloaded,
}

impl Code {
    /// Every code, in the order of the catalogue.
    pub const ALL: &[Code] = &[
        Code::Internal,
        Code::NotFound,
        Code::Unauthorized,
        Code::NotAllowed,
        Code::MethodNotFound,
        Code::BadName,
        Code::BadRequest,
        Code::BadSegment,
        Code::BadLayerPrefix,
        Code::MalformedPartner,
        Code::InvalidAccount,
        Code::EmailExists,
        Code::UsernameExists,
        Code::BadUsername,
        Code::UsernameIsImmutable,
        Code::EmailIsImmutable,
        Code::RequireAccountDetails,
        Code::BadEmail,
        Code::RequireEmail,
        Code::RequirePassword,
        Code::BadPasswordFormat,
        Code::BadDomainFormat,
        Code::BadAppFormat,
        Code::BadRoomFormat,
        Code::PathExists,
        Code::DomainExists,
        Code::ApplicationExists,
        Code::RoomExists,
        Code::KeyExists,
        Code::NoNamespace,
        Code::NoDomain,
        Code::NoApplication,
        Code::NoRoom,
        Code::NoService,
        Code::UserNotAdmin,
        Code::BadMeContext,
        Code::UnauthorizedDomain,
        Code::ValueMissing,
        Code::VerMissing,
        Code::VersionConflict,
        Code::Locked,
        Code::IdempotencyConflict,
        Code::RequireTypeParam,
        Code::UnrecognizedTypeParam,
        Code::ChannelOverrideNotAllowed,
        Code::TooLarge,
        Code::TooManyRequests,
        Code::StoreUnavailable,
        Code::StoreDegraded,
        Code::Overloaded,
    ];

    /// The word as it stands in `v`.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::Internal => "internal",
            Code::NotFound => "not_found",
            Code::Unauthorized => "unauthorized",
            Code::NotAllowed => "not_allowed",
            Code::MethodNotFound => "method_not_found",
            Code::BadName => "bad_name",
            Code::BadRequest => "bad_request",
            Code::BadSegment => "bad_segment",
            Code::BadLayerPrefix => "bad_layer_prefix",
            Code::MalformedPartner => "malformed_partner",
            Code::InvalidAccount => "invalid_account",
            Code::EmailExists => "email_exists",
            Code::UsernameExists => "username_exists",
            Code::BadUsername => "bad_username",
            Code::UsernameIsImmutable => "username_is_immutable",
            Code::EmailIsImmutable => "email_is_immutable",
            Code::RequireAccountDetails => "require_account_details",
            Code::BadEmail => "bad_email",
            Code::RequireEmail => "require_email",
            Code::RequirePassword => "require_password",
            Code::BadPasswordFormat => "bad_password_format",
            Code::BadDomainFormat => "bad_domain_format",
            Code::BadAppFormat => "bad_app_format",
            Code::BadRoomFormat => "bad_room_format",
            Code::PathExists => "path_exists",
            Code::DomainExists => "domain_exists",
            Code::ApplicationExists => "application_exists",
            Code::RoomExists => "room_exists",
            Code::KeyExists => "key_exists",
            Code::NoNamespace => "no_namespace",
            Code::NoDomain => "no_domain",
            Code::NoApplication => "no_application",
            Code::NoRoom => "no_room",
            Code::NoService => "no_service",
            Code::UserNotAdmin => "user_not_admin",
            Code::BadMeContext => "bad_me_context",
            Code::UnauthorizedDomain => "unauthorized_domain",
            Code::ValueMissing => "value_missing",
            Code::VerMissing => "_ver_missing",
            Code::VersionConflict => "version_conflict",
            Code::Locked => "locked",
            Code::IdempotencyConflict => "idempotency_conflict",
            Code::RequireTypeParam => "require_type_param",
            Code::UnrecognizedTypeParam => "unrecognized_type_param",
            Code::ChannelOverrideNotAllowed => "channel_override_not_allowed",
            Code::TooLarge => "too_large",
            Code::TooManyRequests => "too_many_requests",
            Code::StoreUnavailable => "store_unavailable",
            Code::StoreDegraded => "store_degraded",
            Code::Overloaded => "overloaded",
        }
    }

    /// The HTTP status for callers who opted in to real ones.
    pub fn status(self) -> u16 {
        match self {
            Code::Internal => 500,
            Code::NotFound => 404,
            Code::Unauthorized => 401,
            Code::NotAllowed => 403,
            Code::MethodNotFound => 405,
            Code::BadName => 400,
            Code::BadRequest => 400,
            Code::BadSegment => 400,
            Code::BadLayerPrefix => 400,
            Code::MalformedPartner => 400,
            Code::InvalidAccount => 404,
            Code::EmailExists => 409,
            Code::UsernameExists => 409,
            Code::BadUsername => 400,
            Code::UsernameIsImmutable => 409,
            Code::EmailIsImmutable => 409,
            Code::RequireAccountDetails => 400,
            Code::BadEmail => 400,
            Code::RequireEmail => 400,
            Code::RequirePassword => 400,
            Code::BadPasswordFormat => 400,
            Code::BadDomainFormat => 400,
            Code::BadAppFormat => 400,
            Code::BadRoomFormat => 400,
            Code::PathExists => 409,
            Code::DomainExists => 409,
            Code::ApplicationExists => 409,
            Code::RoomExists => 409,
            Code::KeyExists => 409,
            Code::NoNamespace => 404,
            Code::NoDomain => 404,
            Code::NoApplication => 404,
            Code::NoRoom => 404,
            Code::NoService => 503,
            Code::UserNotAdmin => 403,
            Code::BadMeContext => 400,
            Code::UnauthorizedDomain => 403,
            Code::ValueMissing => 400,
            Code::VerMissing => 428,
            Code::VersionConflict => 409,
            Code::Locked => 423,
            Code::IdempotencyConflict => 422,
            Code::RequireTypeParam => 400,
            Code::UnrecognizedTypeParam => 400,
            Code::ChannelOverrideNotAllowed => 403,
            Code::TooLarge => 413,
            Code::TooManyRequests => 429,
            Code::StoreUnavailable => 503,
            Code::StoreDegraded => 503,
            Code::Overloaded => 503,
        }
    }

    /// What was wrong and what to do, for a person.
    pub fn text(self) -> &'static str {
        match self {
            Code::Internal => "The neuron failed to carry this out.",
            Code::NotFound => "There is nothing under this path and key.",
            Code::Unauthorized => {
                "The credentials are missing, wrong, or of an inactive account, the token has expired or was revoked, or a rule denies this address."
            }
            Code::NotAllowed => {
                "These credentials are right, but they, or rules of the path, do not permit this call."
            }
            Code::MethodNotFound => "This service has no such method.",
            Code::BadName => {
                "The key is missing, empty, longer than 512 bytes, or holds a control character."
            }
            Code::BadRequest => "The query or the body cannot be read; the detail says where.",
            Code::BadSegment => {
                "A path segment is empty after decoding, too long, `.` or `..`, or holds a control character."
            }
            Code::BadLayerPrefix => {
                "The layer is missing, or is not one that this account may name."
            }
            Code::MalformedPartner => "The credentials name more than one level of sub-account.",
            Code::InvalidAccount => "There is no such account.",
            Code::EmailExists => "Another account of this owner has that e-mail address.",
            Code::UsernameExists => "Another account of this owner has that name.",
            Code::BadUsername => {
                "The account name is empty, longer than 64 bytes, `sys`, starts with `!` or `$`, or holds one of `/ # : )`."
            }
            Code::UsernameIsImmutable => "An account keeps its name; make a new account instead.",
            Code::EmailIsImmutable => {
                "An account keeps its e-mail address; make a new account instead."
            }
            Code::RequireAccountDetails => "`v` must be an object with the account's fields.",
            Code::BadEmail => "The e-mail address is missing or is not of the form name@domain.",
            Code::RequireEmail => "An e-mail address is required.",
            Code::RequirePassword => "A password is required.",
            Code::BadPasswordFormat => "The password must be a string of 4 to 256 bytes.",
            Code::BadDomainFormat => "The domain is not a legal path segment.",
            Code::BadAppFormat => "The application is not a legal path segment.",
            Code::BadRoomFormat => "The room is not a legal path segment.",
            Code::PathExists => "This namespace path exists already.",
            Code::DomainExists => "This domain exists already.",
            Code::ApplicationExists => "This application exists already.",
            Code::RoomExists => "This room exists already.",
            Code::KeyExists => "Another entry of this layer and path has that secondary key.",
            Code::NoNamespace => "The path is not in the namespace; PUT it to /_ns first.",
            Code::NoDomain => "There is no such domain.",
            Code::NoApplication => "There is no such application.",
            Code::NoRoom => "There is no such room.",
            Code::NoService => "No running neuron provides this service.",
            Code::UserNotAdmin => "This needs an administrator of the account.",
            Code::BadMeContext => "This call has no meaning for the caller's own account.",
            Code::UnauthorizedDomain => "These credentials do not permit that domain.",
            Code::ValueMissing => "The body needs `v`.",
            Code::VerMissing => {
                "This path is strict: an update must carry the `_ver_` that it read."
            }
            Code::VersionConflict => {
                "The entry has changed since the `_ver_` that was given; read it again."
            }
            Code::Locked => "Another update of this entry is in progress.",
            Code::IdempotencyConflict => {
                "That Idempotency-Key was used before with another request."
            }
            Code::RequireTypeParam => "The parameter `type` is required: `signal` or `turn`.",
            Code::UnrecognizedTypeParam => "The parameter `type` must be `signal` or `turn`.",
            Code::ChannelOverrideNotAllowed => "The token was made for another path.",
            Code::TooLarge => "The request is larger than this neuron's limit.",
            Code::TooManyRequests => {
                "The rate limit of this address or account is used up; Retry-After says when to try again."
            }
            Code::StoreUnavailable => {
                "The store cannot take this now (disk full, or it is away). Nothing was changed; only where the disk itself fails, a restart may find that it was."
            }
            Code::StoreDegraded => {
                "The store took this without a quorum; the condition cannot be promised."
            }
            Code::Overloaded => "The neuron sheds load; Retry-After says when to try again.",
        }
    }

    /// Whether the status is real even in the compatible mode.
    pub fn is_always_real(self) -> bool {
        matches!(
            self,
            Code::Internal
                | Code::TooLarge
                | Code::TooManyRequests
                | Code::StoreUnavailable
                | Code::StoreDegraded
                | Code::Overloaded
        )
    }
}
