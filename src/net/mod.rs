//! Sockets and bytes. Knows neither tasks nor callbacks.

mod framing;
mod input;
mod listener;
mod outbox;
mod stream;
mod waker;

pub use framing::Framing;

pub(crate) use framing::FrameTooLong;
pub(crate) use input::Input;
pub(crate) use listener::{AcceptError, Listener};
pub(crate) use outbox::Outbox;
pub(crate) use stream::Stream;
pub(crate) use waker::{Sleeper, Waker};
