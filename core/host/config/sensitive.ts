import { inspect } from 'node:util';

/** A secret that does not leak by being printed: JSON, inspect and string conversion show `[secret]`. */
export class Sensitive {
  readonly #value: string;

  /** @param value the secret itself */
  constructor(value: string) {
    this.#value = value;
  }

  /** The secret itself. Call it where it is used, and keep the result nowhere. */
  reveal(): string {
    return this.#value;
  }

  /** `[secret]` */
  toString(): string {
    return '[secret]';
  }

  /** `[secret]` */
  toJSON(): string {
    return '[secret]';
  }

  /** `[secret]` */
  [inspect.custom](): string {
    return '[secret]';
  }
}
