//! **Pure.** The body of an answer, which keeps its call in the air until it has ended or is
//! dropped: a stream is work for who sends it, though it was judged by its head.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http_body::{Body, Frame, SizeHint};

use crate::pool::Lease;

pub(crate) struct Leased<B> {
    body: B,
    lease: Option<Lease>,
}

impl<B: Body> Leased<B> {
    pub(crate) fn new(body: B, lease: Lease) -> Self {
        let lease = Some(lease).filter(|_| !body.is_end_stream());
        Self { body, lease }
    }
}

impl<B: Body + Unpin> Body for Leased<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(context);
        let is_over = matches!(polled, Poll::Ready(None | Some(Err(_))));
        if is_over || this.body.is_end_stream() {
            this.lease = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
