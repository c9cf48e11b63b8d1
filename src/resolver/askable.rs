//! **Door.** What [`Resolver::lookup`](crate::Resolver::lookup) takes as a name:
//! a text, which is parsed, or a name that has been.

use std::borrow::Cow;

use crate::{
    error::Error,
    name::{ConsulName, Domain},
};

/// Texts and names that can be looked up. Implemented here alone.
pub trait Name: sealed::AsName + Unpin {}

impl<N: sealed::AsName + Unpin> Name for N {}

mod sealed {
    use super::{ConsulName, Cow, Domain, Error};

    #[expect(unnameable_types, reason = "sealed: nobody outside is to name it")]
    pub trait AsName {
        #[doc(hidden)]
        fn as_name(&self, domain: &Domain) -> Result<Cow<'_, ConsulName>, Error>;
    }

    impl AsName for ConsulName {
        fn as_name(&self, _: &Domain) -> Result<Cow<'_, ConsulName>, Error> {
            Ok(Cow::Borrowed(self))
        }
    }

    impl AsName for str {
        fn as_name(&self, domain: &Domain) -> Result<Cow<'_, ConsulName>, Error> {
            match ConsulName::parse(self, domain) {
                Ok(name) => Ok(Cow::Owned(name)),
                Err(error) => Err(error.into()),
            }
        }
    }

    impl AsName for String {
        fn as_name(&self, domain: &Domain) -> Result<Cow<'_, ConsulName>, Error> {
            self.as_str().as_name(domain)
        }
    }

    impl<N: AsName + ?Sized> AsName for &N {
        fn as_name(&self, domain: &Domain) -> Result<Cow<'_, ConsulName>, Error> {
            (**self).as_name(domain)
        }
    }
}
