"""What a user's environment may hold and nobody else may ever read."""

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAHUSH7HUSH7HUSH7H",
    "AWS_SECRET_ACCESS_KEY": "hushSecretAccessKey/7+hush",
    "AWS_SESSION_TOKEN": "hushSessionToken==7hush",
    "PREFECT_API_KEY": "pnu_hushPrefectKey7",
    "RAY_AUTH_TOKEN": "hushRayToken7hushRayToken7",
    "HF_TOKEN": "hf_hushHuggingFace7",
    "GIT_ASKPASS_PASSWORD": "hushGitPassword7",
    "HTTPS_PROXY_PASSWORD": "hushProxyPassword7",
}
