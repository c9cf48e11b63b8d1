//! **Pure.** The body of a request: what there is of it at once, so that it can be sent again.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame};
use http_body_util::Full;
use tonic::{Status, body::Body};

/// A request up to this size is kept until it is answered, so that it can be sent again.
const MOST_KEPT: usize = 256 << 10;

/// The body of a request.
pub(super) enum Sent {
    /// All of it: it can be sent again.
    Whole(Bytes),
    /// It is sent once, and is here until it is asked for its first part.
    Stream(Arc<Mutex<Option<Stream>>>),
}

/// What there was at once, and what comes later.
pub(super) struct Stream {
    first: Bytes,
    rest: Body,
}

impl Sent {
    /// Takes what is there without waiting: all of it, unless the request is a stream that
    /// goes on.
    pub(super) fn read(mut body: Body) -> Self {
        let mut all = BytesMut::new();
        let mut context = Context::from_waker(Waker::noop());
        while all.len() < MOST_KEPT {
            match Pin::new(&mut body).poll_frame(&mut context) {
                Poll::Ready(None) => return Self::Whole(all.freeze()),
                // Requests have no trailers.
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        all.extend_from_slice(&data);
                    }
                }
                // It is told when it is sent.
                Poll::Ready(Some(Err(error))) => {
                    body = Body::new(Failing(Some(error)));
                    break;
                }
                Poll::Pending => break,
            }
        }
        let first = all.freeze();
        Self::Stream(Arc::new(Mutex::new(Some(Stream { first, rest: body }))))
    }

    /// Whether all of it is here, however often it is sent.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self, Self::Whole(_))
    }

    /// What is sent now.
    pub(super) fn body(&self) -> Body {
        match self {
            Self::Whole(bytes) => Body::new(Full::new(bytes.clone())),
            Self::Stream(stream) => Body::new(Lent {
                stream: Arc::clone(stream),
                taken: None,
            }),
        }
    }
}

/// A stream that is taken when it is asked for: of one that never was, nothing is lost.
struct Lent {
    stream: Arc<Mutex<Option<Stream>>>,
    taken: Option<Stream>,
}

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.taken.is_none() {
            let mut stream = this.stream.lock().unwrap_or_else(PoisonError::into_inner);
            this.taken = stream.take();
        }
        let Some(stream) = &mut this.taken else {
            return Poll::Ready(Some(Err(Status::internal("a stream is sent once"))));
        };
        if !stream.first.is_empty() {
            let first = std::mem::take(&mut stream.first);
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        Pin::new(&mut stream.rest).poll_frame(context)
    }
}

/// A body that fails.
struct Failing(Option<Status>);

impl http_body::Body for Failing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.get_mut().0.take().map(Err))
    }
}
