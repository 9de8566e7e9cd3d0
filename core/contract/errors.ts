/** Whose fault an error is: who has to do something about it. */
export type Culprit = 'client' | 'server' | 'config' | 'codec' | 'plugin' | 'gateway' | 'network' | 'system';

/**
 * An error with a code that is listed in ERRORS.md. The message says what happened and what to do. It never holds
 * secrets or data of the client.
 */
export class CodedError extends Error {
  /**
   * @param code `OUTLIVE_...`, listed in ERRORS.md
   * @param culprit who has to act
   * @param message what happened and what to do
   */
  constructor(
    readonly code: string,
    readonly culprit: Culprit,
    message: string,
    options?: { cause?: unknown },
  ) {
    super(message, options);
    this.name = 'CodedError';
  }
}

/** The only error a codec throws on purpose: the peer broke the protocol. */
export class ProtocolViolation extends CodedError {
  /** @param message what was wrong, without data of the stream */
  constructor(message: string, culprit: 'client' | 'server' = 'client') {
    super('OUTLIVE_PROTOCOL_VIOLATION', culprit, message);
    this.name = 'ProtocolViolation';
  }
}
