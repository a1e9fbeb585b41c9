//! An unbounded crossbeam channel that keeps what is large in memory of its own: the channel itself takes memory for some
//! thirty messages at a time, and copies each several times.

use std::time::Instant;

use crossbeam_channel::{Receiver, Select, Sender, unbounded};

/// A message of more bytes is large.
const SMALL: usize = 2048;

/// Which of the two it is, the type of its messages decides.
pub(super) enum Channel<X> {
    Small(Sender<X>, Receiver<X>),
    Large(Sender<Box<X>>, Receiver<Box<X>>),
}

impl<X> Channel<X> {
    pub(super) fn new() -> Channel<X> {
        match size_of::<X>() > SMALL {
            false => {
                let (sender, receiver) = unbounded();
                Channel::Small(sender, receiver)
            }
            true => {
                let (sender, receiver) = unbounded();
                Channel::Large(sender, receiver)
            }
        }
    }

    /// Never blocks, and cannot fail: both ends live as long as this.
    #[inline(always)]
    pub(super) fn send(&self, message: X) {
        match self {
            Channel::Small(sender, _) => drop(sender.send(message)),
            Channel::Large(sender, _) => drop(sender.send(Box::new(message))),
        }
    }

    #[inline]
    pub(super) fn try_recv(&self) -> Option<X> {
        match self {
            Channel::Small(_, receiver) => receiver.try_recv().ok(),
            Channel::Large(_, receiver) => Some(*receiver.try_recv().ok()?),
        }
    }

    /// Blocks until a message is here, or until the deadline; without one, for as long as it takes.
    pub(super) fn recv_by(&self, deadline: Option<Instant>) -> Option<X> {
        match self {
            Channel::Small(_, receiver) => recv_by(receiver, deadline),
            Channel::Large(_, receiver) => Some(*recv_by(receiver, deadline)?),
        }
    }

    /// The same, but no longer than until `end`, which is at its end once its sender is gone.
    pub(super) fn recv_before(&self, end: &Receiver<()>, deadline: Instant) -> Option<X> {
        match self {
            Channel::Small(_, receiver) => wait_for_either(receiver, end, deadline),
            Channel::Large(_, receiver) => wait_for_either(receiver, end, deadline),
        }
        self.try_recv()
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        match self {
            Channel::Small(_, receiver) => receiver.len(),
            Channel::Large(_, receiver) => receiver.len(),
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Channel::Small(_, receiver) => receiver.is_empty(),
            Channel::Large(_, receiver) => receiver.is_empty(),
        }
    }
}

fn wait_for_either<Y>(receiver: &Receiver<Y>, end: &Receiver<()>, deadline: Instant) {
    let mut select = Select::new();
    select.recv(receiver);
    select.recv(end);
    let _ = select.ready_deadline(deadline);
}

fn recv_by<Y>(receiver: &Receiver<Y>, deadline: Option<Instant>) -> Option<Y> {
    match deadline {
        Some(deadline) => receiver.recv_deadline(deadline).ok(),
        None => receiver.recv().ok(),
    }
}
