-- Index of auth chains (storage/auth-chains.ts). State events are laid out in chains, in which each event reaches all
-- those before it along auth_events; links say what else is reached from where in a chain.
CREATE TABLE auth_chain_positions (
  event bigint PRIMARY KEY,
  -- The nid of the chain's first event.
  chain bigint NOT NULL,
  seq integer NOT NULL
);
CREATE UNIQUE INDEX auth_chain_positions_chain ON auth_chain_positions (chain, seq) INCLUDE (event);

-- From `origin_seq` on, the origin chain reaches the target chain up to `target_seq`. Only auth_events themselves
-- make links: what they reach in turn is found by following the links.
CREATE TABLE auth_chain_links (
  origin_chain bigint NOT NULL,
  origin_seq integer NOT NULL,
  target_chain bigint NOT NULL,
  target_seq integer NOT NULL,
  PRIMARY KEY (origin_chain, origin_seq, target_chain)
);

-- Events that can't be laid out yet because one of their auth events is not.
CREATE TABLE auth_chain_pending (
  -- Id of the event that is waited for.
  missing text NOT NULL,
  event bigint NOT NULL,
  auth_events text[] NOT NULL,
  PRIMARY KEY (missing, event)
);
CREATE INDEX auth_chain_pending_event ON auth_chain_pending (event);
