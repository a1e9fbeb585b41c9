//! A socket whose client is gone is an error, and not a signal that ends a program which has not been told to ignore it.

use std::io::{self, IoSlice, Read, Write};

use rustix::net::SendFlags;
use socket2::Socket;

pub(super) struct Quiet<'a>(pub(super) &'a Socket);

fn flags() -> i32 {
    // The bits of a flag of one platform fit that platform's type for them.
    SendFlags::NOSIGNAL.bits() as i32
}

impl Read for Quiet<'_> {
    #[inline]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(buffer)
    }
}

impl Write for Quiet<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send_with_flags(bytes, flags())
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.send_vectored_with_flags(slices, flags())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
