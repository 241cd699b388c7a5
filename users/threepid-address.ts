import { type CountryCode, isSupportedCountry, parsePhoneNumberFromString } from 'libphonenumber-js';

export type Medium = 'email' | 'msisdn';

/** A third-party identifier in its canonical form (spec: appendices, "3PID Types"). */
export interface Threepid {
  readonly medium: Medium;
  readonly address: string;
}

const MAX_EMAIL = 254;

/** An e-mail address in its canonical form; `undefined` for what is none. Mail is only ever sent to that form. */
export function canonicalEmail(text: string): string | undefined {
  const address = foldCase(text.trim().normalize('NFC'));
  // One @ with something on both sides; nothing that could be more than one address, or a name beside it.
  const isAddress = /^[^\s\p{Cc}@<>,;:"()[\]\\]+@[^\s\p{Cc}@<>,;:"()[\]\\]+$/u.test(address);
  return isAddress && address.length <= MAX_EMAIL && address.isWellFormed() ? address : undefined;
}

/**
 * Unicode case folding, near enough: what differs in case only, as ß and SS do, becomes the same. The dotless ı is a
 * letter of its own although its capital is that of i.
 */
function foldCase(text: string): string {
  return Array.from(text, (char) => (char === 'ı' ? char : char.toUpperCase().toLowerCase())).join('');
}

/**
 * A phone number as an MSISDN, digits only, from how somebody dials it in a country.
 *
 * @param country two letters (ISO 3166-1)
 */
export function canonicalPhone(country: string, number: string): string | undefined {
  const code = country.toUpperCase();
  if (!isSupportedCountry(code) || number.length > 64) return undefined;
  const parsed = parsePhoneNumberFromString(number, code as CountryCode);
  return parsed?.isPossible() ? parsed.number.slice(1) : undefined;
}

/** For look-ups: an address that is not canonical is made so, one that is none stays what it is. */
export function canonicalAddress(medium: string, address: string): string {
  if (medium === 'email') return canonicalEmail(address) ?? address;
  return medium === 'msisdn' ? address.replace(/^\+/, '') : address;
}
