/** A document in one language. */
export interface PolicyDocument {
  readonly name: string;
  readonly url: string;
}

/** By the names of the documents: the version, and the document by language (spec: "Terms of service at registration"). */
export type Policies = Readonly<Record<string, { readonly version: string } & PolicyLanguages>>;
type PolicyLanguages = Readonly<Record<string, PolicyDocument | string>>;

/** What else is asked of who registers. */
export interface SignUpConditions {
  readonly policies?: Policies | undefined;
  readonly captcha?: { readonly publicKey: string } | undefined;
}
