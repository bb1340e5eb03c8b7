//! The answers that a node can give, as data.

use std::time::Duration;

/// The answer of a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Scenario {
    /// Every entity AVAILABLE: healthy, or locked without a reason given.
    Available,
    /// The account is BLOCKED for its payment method (141006).
    Payment,
    /// The business is BLOCKED for a commerce policy (141005).
    Policy,
    /// The business is LIMITED, not verified (141010).
    Unverified,
    /// The number is LIMITED, with a note and no code.
    DisplayName,
    /// The root is BLOCKED for calling only; every entity can send.
    CallingNoise,
    /// An answer without `health_status`.
    NoHealth,
    /// Too many calls (80008), with a usage header that says for how many minutes.
    Throttled(u64),
    /// The token expired (190).
    ExpiredToken,
    /// The token is malformed (190), and Meta repeats it.
    RepeatsToken,
    /// The node does not exist, or is not visible (100). A node without a script answers this.
    UnknownNode,
    /// An internal error (HTTP 500, code 2).
    ServerError,
    /// An error in the body of a 200.
    ErrorInOk,
    /// Not JSON.
    Garbage,
    /// A redirect to this address.
    Redirect(String),
    /// The connection breaks within the body.
    Reset,
    /// A body of a gigabyte.
    Endless,
    /// A byte every 100 ms, until the client goes away.
    Drip,
    /// Another answer, after a while.
    Slow(Duration, Box<Scenario>),
}

/// A `health_status`: the root's verdict, and the entities that say more than AVAILABLE.
pub(super) struct Health {
    pub(super) root: &'static str,
    pub(super) entities: &'static [Entity],
}

/// An entity that says more than AVAILABLE.
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

/// An error instead of an answer.
pub(super) struct Refusal {
    pub(super) http_status: u16,
    pub(super) code: u32,
    pub(super) message: String,
}

impl Scenario {
    /// The health that the scenario tells, if it tells one.
    pub(super) fn health(&self) -> Option<&'static Health> {
        match self {
            Self::Available => Some(&AVAILABLE),
            Self::Payment => Some(&PAYMENT),
            Self::Policy => Some(&POLICY),
            Self::Unverified => Some(&UNVERIFIED),
            Self::DisplayName => Some(&DISPLAY_NAME),
            Self::CallingNoise => Some(&CALLING_NOISE),
            _ => None,
        }
    }

    /// The error that the scenario answers with, if it does.
    pub(super) fn refusal(&self, node_id: &str, access_token: &str) -> Option<Refusal> {
        let (http_status, code, message) = match self {
            Self::Throttled(_) => (400, 80008, THROTTLED.to_owned()),
            Self::ExpiredToken => (401, 190, EXPIRED_TOKEN.to_owned()),
            Self::RepeatsToken => (400, 190, format!("Malformed access token {access_token}")),
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

const THROTTLED: &str = "(#80008) There have been too many calls to this WhatsApp Business account. \
                         Wait a bit and try again.";
const EXPIRED_TOKEN: &str = "Error validating access token: Session has expired on Monday, \
                             01-Jan-24 00:00:00 PST.";
const SERVER_ERROR: &str = "An unexpected error has occurred. Please retry your request later.";

/// An entity to start from.
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
        entity_type: "BUSINESS",
        can_send_message: "LIMITED",
        error: Some(Error {
            code: 141_010,
            description: "The Business has not passed business verification.",
            solution: Some(
                "Visit business settings and start or resolve the business verification request.",
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

const CALLING_NOISE: Health = Health {
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
