"""Programs around the core: benchmark, memory plan, playground, session, smoke test. Nothing else imports them."""
