//! The writes that put an earlier template back and keep the appliers' bookkeeping right.
