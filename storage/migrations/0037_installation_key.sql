-- The public key that this installation signs with, "ed25519:VERSION BASE64": all its processes must have the same.
ALTER TABLE installation ADD COLUMN signing_key text;
