//! The answers that the simulator can give for a node.

use std::time::Duration;

/// An answer for a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Scenario {
    /// Every entity is AVAILABLE: healthy, or locked without a reason.
    Available,
    /// The account is BLOCKED because of its payment method (141006).
    Payment,
    /// The business is BLOCKED because of a commerce policy (141005).
    Policy,
    /// The business is LIMITED because it is not verified (141010): it can send.
    Unverified,
    /// The business is BLOCKED because it is not verified (141010).
    UnverifiedBlocked,
    /// The number is BLOCKED because it is not registered (141000).
    NotRegistered,
    /// The number is LIMITED, with a note (display name) but no code: it can send.
    DisplayName,
    /// The root is BLOCKED for calling only: every entity can send messages.
    CallingBlocked,
    /// The answer has no `health_status`.
    NoHealth,
    /// Too many calls (80008). The usage header says for how many minutes to wait.
    Throttled(u64),
    /// The look-up is refused because the account is restricted (368): that names its state.
    Restricted,
    /// The token has expired (190).
    ExpiredToken,
    /// The token is malformed (190), and the error message contains it.
    TokenInError,
    /// The node does not exist, or is not visible (100). It is the default answer.
    UnknownNode,
    /// An internal error (HTTP status 500, code 2).
    ServerError,
    /// HTTP status 200, with an error in the body: a payment problem (131042).
    ErrorInOk,
    /// This answer as it is: HTTP status, headers and body.
    Answer {
        /// The HTTP status.
        status: u16,
        /// Names and values of headers.
        headers: Vec<(String, String)>,
        /// The body.
        body: String,
    },
    /// The body is not JSON.
    Garbage,
    /// A redirect to this address.
    Redirect(String),
    /// The connection breaks in the middle of the body.
    Reset,
    /// A body of one gigabyte.
    Endless,
    /// A body that sends one byte every 100 ms, until the client disconnects.
    SlowBody,
    /// Another answer, after a delay.
    Delayed(Duration, Box<Scenario>),
}

/// A `health_status`: its root, and the entities that are not simply AVAILABLE.
pub(super) struct Health {
    pub(super) root: &'static str,
    pub(super) entities: &'static [Entity],
}

/// An entity that is not simply AVAILABLE.
pub(super) struct Entity {
    pub(super) entity_type: &'static str,
    pub(super) can_send_message: &'static str,
    pub(super) can_receive_call_sip: Option<&'static str>,
    pub(super) additional_info: Option<&'static str>,
    pub(super) error: Option<Error>,
}

/// An error on an entity.
pub(super) struct Error {
    pub(super) code: u32,
    pub(super) description: &'static str,
    pub(super) solution: Option<&'static str>,
}

/// An error instead of a `health_status`.
pub(super) struct Refusal {
    pub(super) http_status: u16,
    pub(super) code: u32,
    pub(super) message: String,
}

impl Scenario {
    /// Returns the `health_status` of the scenario, if it has one.
    pub(super) fn health(&self) -> Option<&'static Health> {
        match self {
            Self::Available => Some(&AVAILABLE),
            Self::Payment => Some(&PAYMENT),
            Self::Policy => Some(&POLICY),
            Self::Unverified => Some(&UNVERIFIED),
            Self::UnverifiedBlocked => Some(&UNVERIFIED_BLOCKED),
            Self::NotRegistered => Some(&NOT_REGISTERED),
            Self::DisplayName => Some(&DISPLAY_NAME),
            Self::CallingBlocked => Some(&CALLING_BLOCKED),
            _ => None,
        }
    }

    /// Returns the error of the scenario, if it has one.
    pub(super) fn refusal(&self, node_id: &str, access_token: &str) -> Option<Refusal> {
        let (http_status, code, message) = match self {
            Self::Throttled(_) => (400, 80008, THROTTLED.to_owned()),
            Self::Restricted => (403, 368, RESTRICTED.to_owned()),
            Self::ExpiredToken => (401, 190, EXPIRED_TOKEN.to_owned()),
            Self::TokenInError => (400, 190, format!("Malformed access token {access_token}")),
            Self::UnknownNode => (
                400,
                100,
                format!(
                    "Unsupported get request. Object with ID '{node_id}' does not exist, cannot be \
                     loaded due to missing permissions, or does not support this operation."
                ),
            ),
            Self::ServerError => (500, 2, SERVER_ERROR.to_owned()),
            Self::ErrorInOk => (
                200,
                131_042,
                "Business eligibility payment issue".to_owned(),
            ),
            _ => return None,
        };
        Some(Refusal {
            http_status,
            code,
            message,
        })
    }
}

const THROTTLED: &str = "(#80008) There have been too many calls to this WhatsApp Business \
                         account. Wait a bit and try again.";
const EXPIRED_TOKEN: &str = "Error validating access token: Session has expired on Monday, \
                             01-Jan-24 00:00:00 PST.";
const RESTRICTED: &str = "(#368) Temporarily blocked for policies violations";
const SERVER_ERROR: &str = "An unexpected error has occurred. Please retry your request later.";

/// The default values of an entity.
const ENTITY: Entity = Entity {
    entity_type: "WABA",
    can_send_message: "AVAILABLE",
    can_receive_call_sip: None,
    additional_info: None,
    error: None,
};

const AVAILABLE: Health = Health {
    root: "AVAILABLE",
    entities: &[],
};

const PAYMENT: Health = Health {
    root: "BLOCKED",
    entities: &[Entity {
        can_send_message: "BLOCKED",
        error: Some(Error {
            code: 141_006,
            description: "There is an error with the payment method. This will block business \
                          initiated conversations.",
            solution: Some(
                "There was an error with your payment method. Please add a new payment method to \
                 the account.",
            ),
        }),
        ..ENTITY
    }],
};

const POLICY: Health = Health {
    root: "BLOCKED",
    entities: &[Entity {
        entity_type: "BUSINESS",
        can_send_message: "BLOCKED",
        error: Some(Error {
            code: 141_005,
            description: "The account has failed the commerce check",
            solution: None,
        }),
        ..ENTITY
    }],
};

const UNVERIFIED: Health = Health {
    root: "LIMITED",
    entities: &[Entity {
        can_send_message: "LIMITED",
        ..UNVERIFIED_BUSINESS
    }],
};

const UNVERIFIED_BLOCKED: Health = Health {
    root: "BLOCKED",
    entities: &[UNVERIFIED_BUSINESS],
};

const UNVERIFIED_BUSINESS: Entity = Entity {
    entity_type: "BUSINESS",
    can_send_message: "BLOCKED",
    error: Some(Error {
        code: 141_010,
        description: "The Business has not passed business verification.",
        solution: Some(
            "Visit business settings and start or resolve the business verification request.",
        ),
    }),
    ..ENTITY
};

const NOT_REGISTERED: Health = Health {
    root: "BLOCKED",
    entities: &[Entity {
        entity_type: "PHONE_NUMBER",
        can_send_message: "BLOCKED",
        error: Some(Error {
            code: 141_000,
            description: "The phone number you are trying to send messages from is not linked to \
                          your WhatsApp account",
            solution: Some(
                "Register and finish the OTP authentication process for your phone number.",
            ),
        }),
        ..ENTITY
    }],
};

const DISPLAY_NAME: Health = Health {
    root: "LIMITED",
    entities: &[Entity {
        entity_type: "PHONE_NUMBER",
        can_send_message: "LIMITED",
        additional_info: Some(
            "Your display name has not been approved yet. Your message limit will increase after \
             the display name is approved.",
        ),
        ..ENTITY
    }],
};

const CALLING_BLOCKED: Health = Health {
    root: "BLOCKED",
    entities: &[
        Entity {
            entity_type: "PHONE_NUMBER",
            can_receive_call_sip: Some("BLOCKED"),
            error: Some(Error {
                code: 138_024,
                description: "WhatsApp Business calling cannot use SIP because it is not enabled",
                solution: Some(CONFIGURE_SIP),
            }),
            ..ENTITY
        },
        Entity {
            entity_type: "APP",
            can_receive_call_sip: Some("BLOCKED"),
            error: Some(Error {
                code: 138_025,
                description: "This app cannot use SIP for WhatsApp Business calling",
                solution: Some(CONFIGURE_SIP),
            }),
            ..ENTITY
        },
    ],
};

const CONFIGURE_SIP: &str = "Configure SIP using {PHONE_NUMBER_ID}/settings API";
